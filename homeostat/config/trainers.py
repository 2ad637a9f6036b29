"""Schemas of the trainers: dataclasses with types, units and limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.config.checks import (
    MOST,
    require,
    require_at_most,
    require_fraction,
    require_one_of,
    require_positive,
)

KL_CONTROLLERS = ("fixed", "adaptive", "pid")
KL_ESTIMATORS = ("k1", "k3")
LR_DECAYS = ("constant", "linear", "cosine")
CRITICS = ("shared", "lora")
CREDITS = ("turn", "token")
GROUP_CREDITS = ("episode", "turn")


@dataclass(kw_only=True)
class TrainerConfig:
    """What every trainer has; one step is one update or round, a batch is that many episodes.

    ``gradient_checkpointing`` computes every block twice, and keeps only what goes into it.

    Attributes:
        wing: Which of the two founding systems it belongs to, ``reward`` or ``steering``.
        learns: Whether it changes the policy at all.
        follows_pathwise: Whether it can follow a term of the reward by the term's own derivative.
        needs_persona: Whether it steers towards a trait.
        amounts: Which of the amounts of ``work`` its steps and its batch are.
        micro_batch_key: Key that says how much has a gradient at once, to be lowered where memory
            runs out.
    """

    wing: ClassVar[str] = "reward"
    learns: ClassVar[bool] = True
    follows_pathwise: ClassVar[bool] = False
    needs_persona: ClassVar[bool] = False
    amounts: ClassVar[tuple[str, str]] = ("updates", "episodes")
    micro_batch_key: ClassVar[str | None] = None

    _target_: str
    name: str
    lr: float
    batch_size: int
    max_steps: int
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        require_positive(
            "trainer", lr=self.lr, batch_size=self.batch_size, max_steps=self.max_steps
        )
        require_at_most("trainer", MOST, batch_size=self.batch_size, max_steps=self.max_steps)


@dataclass(kw_only=True)
class NoTrainerConfig(TrainerConfig):
    """No training: the run validates every signal on the chosen model (Phase A)."""

    schema: ClassVar[str] = "trainer/none"
    learns: ClassVar[bool] = False
    _target_: str = "homeostat.trainers.none.NoTrainer"


@dataclass(kw_only=True)
class OwnTrainerConfig(TrainerConfig):
    """A trainer of the user's own, which reads its ``options`` as it likes."""

    schema: ClassVar[str] = "trainer/own"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class KLConfig:
    """What moving away from the base costs, in reward units per nat; see `trainers.controllers`.

    ``fixed`` keeps ``coef``; ``adaptive`` and ``pid`` start there and hold the KL near ``target``
    nats per token. ``gain`` belongs to ``adaptive``; what follows it belongs to ``pid``.
    """

    kind: str
    coef: float
    target: float
    gain: float = 0.1
    proportional: float = 0.5
    integral: float = 0.1
    derivative: float = 0.1
    relax: float = 0.25
    max_factor: float = 100.0

    def __post_init__(self) -> None:
        key = "trainer.kl"
        require_one_of(f"{key}.kind", self.kind, KL_CONTROLLERS)
        require(self.coef >= 0, f"{key}.coef={self.coef} must be 0 or above.")
        require(
            self.kind == "fixed" or self.coef > 0,
            f"{key}.coef={self.coef:g} stays 0 under {key}.kind={self.kind}, which multiplies it; "
            f"start above 0, or use {key}.kind=fixed.",
        )
        require_positive(key, target=self.target, gain=self.gain, integral=self.integral)
        require_fraction(key, relax=self.relax)
        for name in ("proportional", "derivative"):
            value = getattr(self, name)
            require(value >= 0, f"{key}.{name}={value} must be 0 or above.")
        require(self.max_factor > 1, f"{key}.max_factor={self.max_factor} must be above 1.")


@dataclass(kw_only=True)
class PolicyGradientConfig(TrainerConfig):
    """What PPO, GRPO and RLOO share; see `homeostat.trainers.policy_gradient`.

    ``kl_estimator`` puts the price of KL into the reward (``k1``) or into the loss (``k3``).
    ``clip_range_high`` is the range upwards; null: the same as downwards.

    ``entropy_coef`` is what a nat of entropy is worth in the loss, in units of the advantage. With
    an ``entropy_target`` (nats per token) it only starts there and moves with what is missing; see
    `homeostat.trainers.controllers`. ``kl_cov_share`` of the tokens, those that narrow the policy
    most, pay ``kl_cov_coef`` for leaving the policy that sampled them. ``mask_truncated`` learns
    nothing from replies that ran into ``rollout.max_new_tokens``.
    """

    follows_pathwise: ClassVar[bool] = True
    micro_batch_key: ClassVar[str | None] = "trainer.micro_batch_tokens"

    epochs: int
    minibatches: int
    micro_batch_tokens: int
    clip_range: float
    clip_range_high: float | None
    entropy_coef: float
    entropy_target: float | None
    entropy_integral: float = 0.02
    entropy_proportional: float = 0.2
    kl_cov_share: float
    kl_cov_coef: float = 1.0
    mask_truncated: bool
    kl: KLConfig
    kl_estimator: str
    target_kl: float | None
    max_grad_norm: float
    warmup_steps: int
    lr_decay: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            "trainer",
            epochs=self.epochs,
            minibatches=self.minibatches,
            micro_batch_tokens=self.micro_batch_tokens,
            clip_range=self.clip_range,
            entropy_integral=self.entropy_integral,
            kl_cov_coef=self.kl_cov_coef,
            max_grad_norm=self.max_grad_norm,
        )
        for name in ("entropy_coef", "entropy_proportional", "warmup_steps"):
            value = getattr(self, name)
            require(value >= 0, f"trainer.{name}={value} must be 0 or above.")
        require(
            self.entropy_target is None or self.entropy_target > 0,
            f"trainer.entropy_target={self.entropy_target} must be above 0 nats per token, or null "
            "for a coefficient that does not move.",
        )
        require_fraction("trainer", kl_cov_share=self.kl_cov_share)
        require(
            not self.kl_cov_share or self.epochs * min(self.minibatches, self.batch_size) > 1,
            f"trainer.kl_cov_share={self.kl_cov_share:g} does nothing where an update is a single "
            "step: no token has left the policy that sampled it; raise trainer.minibatches or "
            "trainer.epochs, or set it to 0.",
        )
        require(
            self.clip_range_high is None or self.clip_range_high > 0,
            f"trainer.clip_range_high={self.clip_range_high} must be above 0, or null for the same "
            "range as downwards.",
        )
        require_one_of("trainer.kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        require_one_of("trainer.lr_decay", self.lr_decay, LR_DECAYS)
        require(
            self.target_kl is None or self.target_kl > 0,
            f"trainer.target_kl={self.target_kl} must be above 0, or null for no early stop.",
        )


@dataclass(kw_only=True)
class PPOConfig(PolicyGradientConfig):
    """Proximal policy optimisation over whole episodes; see `homeostat.trainers.ppo`.

    The ``shared`` critic reads the policy's own trunk; ``lora`` gives it an adapter of its own on
    the same base, for one more forward pass. ``credit`` says whether gamma and gae_lambda count per
    ``turn`` or per ``token``. During the first ``critic_warmup`` updates only the critic learns.
    """

    schema: ClassVar[str] = "trainer/ppo"
    _target_: str = "homeostat.trainers.ppo.PPO"
    critic: str
    value_clip_range: float
    value_coef: float
    value_lr: float
    critic_warmup: int
    credit: str
    gamma: float
    gae_lambda: float
    whiten_advantages: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("trainer.critic", self.critic, CRITICS)
        require_one_of("trainer.credit", self.credit, CREDITS)
        require(
            0 <= self.critic_warmup < self.max_steps,
            f"trainer.critic_warmup={self.critic_warmup} must be 0 or above and below "
            f"trainer.max_steps={self.max_steps}, or the policy would never learn.",
        )
        require_positive("trainer", value_clip_range=self.value_clip_range, value_lr=self.value_lr)
        require_fraction("trainer", gamma=self.gamma, gae_lambda=self.gae_lambda)
        require(self.value_coef >= 0, f"trainer.value_coef={self.value_coef} must be 0 or above.")


@dataclass(kw_only=True)
class GroupConfig(PolicyGradientConfig):
    """Trainers that compare ``group_size`` episodes of one bot seed instead of asking a critic.

    ``credit`` says what is compared: whole episodes, or from each ``turn`` on what is still to
    come, later turns discounted by ``gamma``.
    """

    group_size: int
    credit: str
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_whole_groups(self.batch_size, self.group_size)
        require_one_of("trainer.credit", self.credit, GROUP_CREDITS)
        require_fraction("trainer", gamma=self.gamma)
        require(
            self.credit == "turn" or self.gamma == 1,
            f"trainer.gamma={self.gamma:g} discounts later turns, but trainer.credit=episode "
            "compares whole episodes; use trainer.credit=turn, or leave it at 1.",
        )


@dataclass(kw_only=True)
class GRPOConfig(GroupConfig):
    """Group relative policy optimisation; see `homeostat.trainers.grpo`."""

    schema: ClassVar[str] = "trainer/grpo"
    _target_: str = "homeostat.trainers.grpo.GRPO"


@dataclass(kw_only=True)
class RLOOConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline; see `homeostat.trainers.rloo`."""

    schema: ClassVar[str] = "trainer/rloo"
    _target_: str = "homeostat.trainers.rloo.RLOO"


@dataclass(kw_only=True)
class DPOConfig(TrainerConfig):
    """Direct preference optimisation on ranked replies; see `homeostat.trainers.dpo`."""

    schema: ClassVar[str] = "trainer/dpo"
    micro_batch_key: ClassVar[str | None] = "trainer.micro_batch_pairs"

    _target_: str = "homeostat.trainers.dpo.DPO"
    group_size: int
    epochs: int
    minibatch_pairs: int
    micro_batch_pairs: int
    beta: float
    nll_coef: float
    min_margin: float
    max_length_ratio: float | None
    held_out: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            "trainer",
            epochs=self.epochs,
            minibatch_pairs=self.minibatch_pairs,
            micro_batch_pairs=self.micro_batch_pairs,
            beta=self.beta,
            min_margin=self.min_margin,
            max_grad_norm=self.max_grad_norm,
        )
        _require_whole_groups(self.batch_size, self.group_size)
        require(self.nll_coef >= 0, f"trainer.nll_coef={self.nll_coef} must be 0 or above.")
        require(
            self.max_length_ratio is None or self.max_length_ratio >= 1,
            f"trainer.max_length_ratio={self.max_length_ratio} must be 1 or above, or null for "
            "any lengths.",
        )
        require(
            0 <= self.held_out < 1,
            f"trainer.held_out={self.held_out} must be 0 or above and below 1.",
        )
        require(
            self.minibatch_pairs % min(self.micro_batch_pairs, self.minibatch_pairs) == 0,
            f"trainer.minibatch_pairs={self.minibatch_pairs} must be a multiple of "
            f"trainer.micro_batch_pairs={self.micro_batch_pairs}.",
        )


def _require_whole_groups(batch_size: int, group_size: int) -> None:
    require(
        group_size >= 2,
        f"trainer.group_size={group_size} leaves nothing to compare; use at least 2.",
    )
    require(
        batch_size % group_size == 0,
        f"trainer.batch_size={batch_size} must be a multiple of trainer.group_size={group_size}.",
    )
