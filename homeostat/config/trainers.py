"""Schemas of the trainers: dataclasses with types, units and limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

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


@dataclass
class TrainerConfig:
    """What every trainer has; one step is one update or round, a batch is that many episodes.

    ``gradient_checkpointing`` computes every block twice, and keeps only what goes into it.
    """

    _target_: str = MISSING
    name: str = MISSING
    lr: float = 1e-3
    batch_size: int = 16
    max_steps: int = 4
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        require_positive(
            "trainer", lr=self.lr, batch_size=self.batch_size, max_steps=self.max_steps
        )
        require_at_most("trainer", MOST, batch_size=self.batch_size, max_steps=self.max_steps)


@dataclass
class NoTrainerConfig(TrainerConfig):
    """No training: the run validates every signal on the chosen model (Phase A)."""

    _target_: str = ""


@dataclass
class KLConfig:
    """What moving away from the base costs, in reward units per nat; see `trainers.controllers`.

    ``fixed`` keeps ``coef``; ``adaptive`` and ``pid`` start there and hold the KL near ``target``
    nats per token. ``gain`` belongs to ``adaptive``; what follows it belongs to ``pid``.
    """

    kind: str = "fixed"
    coef: float = 0.02
    target: float = 0.1
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


@dataclass
class PolicyGradientConfig(TrainerConfig):
    """What PPO, GRPO and RLOO share; see `homeostat.trainers.policy_gradient`.

    ``kl_estimator`` puts the price of KL into the reward (``k1``) or into the loss (``k3``).
    """

    epochs: int = 1
    minibatches: int = 4
    micro_batch_tokens: int = 1200
    clip_range: float = 0.2
    entropy_coef: float = 0.0
    kl: KLConfig = field(default_factory=KLConfig)
    kl_estimator: str = "k1"
    target_kl: float | None = 0.1
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    lr_decay: str = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            "trainer",
            epochs=self.epochs,
            minibatches=self.minibatches,
            micro_batch_tokens=self.micro_batch_tokens,
            clip_range=self.clip_range,
            max_grad_norm=self.max_grad_norm,
        )
        for name in ("entropy_coef", "warmup_steps"):
            value = getattr(self, name)
            require(value >= 0, f"trainer.{name}={value} must be 0 or above.")
        require_one_of("trainer.kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        require_one_of("trainer.lr_decay", self.lr_decay, LR_DECAYS)
        require(
            self.target_kl is None or self.target_kl > 0,
            f"trainer.target_kl={self.target_kl} must be above 0, or null for no early stop.",
        )


@dataclass
class PPOConfig(PolicyGradientConfig):
    """Proximal policy optimisation over whole episodes; see `homeostat.trainers.ppo`.

    The ``shared`` critic reads the policy's own trunk; ``lora`` gives it an adapter of its own on
    the same base, for one more forward pass.
    """

    _target_: str = "homeostat.trainers.ppo.PPO"
    critic: str = "shared"
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    value_lr: float = 1e-3
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_advantages: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("trainer.critic", self.critic, CRITICS)
        require_positive("trainer", value_clip_range=self.value_clip_range, value_lr=self.value_lr)
        require_fraction("trainer", gamma=self.gamma, gae_lambda=self.gae_lambda)
        require(self.value_coef >= 0, f"trainer.value_coef={self.value_coef} must be 0 or above.")


@dataclass
class GroupConfig(PolicyGradientConfig):
    """Trainers that compare ``group_size`` episodes of one bot seed instead of asking a critic."""

    group_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_whole_groups(self.batch_size, self.group_size)


@dataclass
class GRPOConfig(GroupConfig):
    """Group relative policy optimisation; see `homeostat.trainers.grpo`."""

    _target_: str = "homeostat.trainers.grpo.GRPO"


@dataclass
class RLOOConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline; see `homeostat.trainers.rloo`."""

    _target_: str = "homeostat.trainers.rloo.RLOO"


@dataclass
class DPOConfig(TrainerConfig):
    """Direct preference optimisation on ranked replies; see `homeostat.trainers.dpo`."""

    _target_: str = "homeostat.trainers.dpo.DPO"
    group_size: int = 4
    epochs: int = 2
    minibatch_pairs: int = 4
    micro_batch_pairs: int = 4
    beta: float = 0.1
    nll_coef: float = 0.0
    min_margin: float = 0.5
    max_length_ratio: float | None = None
    held_out: float = 0.25
    max_grad_norm: float = 1.0

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
