"""Schemas of every config option: dataclasses with types, units and limits; no torch import.

A YAML file under ``conf/`` holds values only. `register` stores each schema in Hydra's ConfigStore
under ``schema/<group>/<option>``, so that a wrong key or type fails before anything heavy is
imported; what spans several fields is checked in ``__post_init__``. `build` turns a config into the
object that its ``_target_`` names: the config itself is the constructor's first argument, so a
schema and the code that it configures cannot drift apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING

from homeostat.checks import require, require_fraction, require_one_of, require_positive
from homeostat.config_eval import EvalConfig
from homeostat.config_model import (
    EmbeddedModelConfig,
    LoraConfig,
    ModelConfig,
    PretrainedModelConfig,
    TinyModelConfig,
)
from homeostat.config_steering import PersonaConfig, SteerHealConfig
from homeostat.config_trainers import (
    DPOConfig,
    GRPOConfig,
    NoTrainerConfig,
    PPOConfig,
    RLOOConfig,
    TrainerConfig,
)

INTRINSIC_SIGNALS = (
    "entropy",
    "self_perplexity",
    "base_perplexity",
    "activation_norm",
    "repetition",
    "self_certainty",
)
POOLINGS = ("mean", "last", "both")
AFFECTS = ("sentiment", "curiosity", "frustration", "confusion", "boredom")
REWARD_MODES = ("level", "reduction")
SIDES = ("both", "above", "below")
REPLY_FEATURES = (
    "relevance",
    "coherence",
    "length",
    "agreement",
    "acknowledgement",
    "question",
)
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def build(part: Any, **runtime: Any) -> Any:
    """The object that ``part._target_`` names, made from the config and runtime objects.

    Args:
        part: A config dataclass with ``_target_``.
        **runtime: What only exists while the program runs, by keyword.
    """
    return get_object(part._target_)(part, **runtime)


# --- signals ----------------------------------------------------------------------------------


@dataclass
class IntrinsicConfig:
    """Which variables the model keeps about itself; ``norm_layers`` are fractions of the depth."""

    names: list[str] = field(default_factory=lambda: list(INTRINSIC_SIGNALS))
    norm_layers: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])

    def __post_init__(self) -> None:
        for name in self.names:
            require_one_of("signals.intrinsic.names", name, INTRINSIC_SIGNALS)
        for fraction in self.norm_layers:
            require_fraction("signals.intrinsic", norm_layers=fraction)
        require(bool(self.norm_layers), "signals.intrinsic.norm_layers is empty; name one layer.")


@dataclass
class AffectConfig:
    """Frozen linear probes that read the user's affect from hidden states.

    ``corpus`` and ``heldout`` are a JSONL or CSV file or the hub id of GoEmotions; null is the
    packaged corpus, and no held-out file. ``require`` is the verdict that the reward asks of a
    probe. After training a probe is stale when its AUROC has dropped by ``stale_auroc_drop`` or its
    reading has moved by ``stale_distance`` on average.
    """

    names: list[str] = field(default_factory=lambda: list(AFFECTS))
    corpus: str | None = None
    heldout: str | None = None
    layers: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    pooling: list[str] = field(default_factory=lambda: list(POOLINGS))
    regularisation: list[float] = field(default_factory=lambda: [0.0003, 0.003, 0.03])
    perception: str = "reference"
    require: str = "weak"
    stale_auroc_drop: float = 0.05
    stale_distance: float = 0.1

    def __post_init__(self) -> None:
        key = "signals.affect"
        for name in self.names:
            require_one_of(f"{key}.names", name, AFFECTS)
        for pooling in self.pooling:
            require_one_of(f"{key}.pooling", pooling, POOLINGS)
        for fraction in self.layers:
            require_fraction(key, layers=fraction)
        for strength in self.regularisation:
            require_positive(key, regularisation=strength)
        for candidates in ("names", "layers", "pooling", "regularisation"):
            require(bool(getattr(self, candidates)), f"{key}.{candidates} is empty; name one.")
        require_one_of(f"{key}.perception", self.perception, ("reference", "policy"))
        require_one_of(f"{key}.require", self.require, ("trusted", "weak", "any"))
        require_positive(
            key, stale_auroc_drop=self.stale_auroc_drop, stale_distance=self.stale_distance
        )


@dataclass
class SignalsConfig:
    """Both families of signals; leave one out with ``signals=[intrinsic]`` or ``[affect]``.

    Automatic set points are measured on ``calibration_episodes`` conversations of the base model,
    sampled at ``calibration_temperature``: below 1, because the set point is to be the base model
    when it is coherent, and training samples at 1. ``validation_replies`` says how many replies of
    every failure trainer=none makes. ``author_groups`` limits how much of the packaged probe corpus
    is used; null is all of it. ``cache`` keeps hidden states, probes and base measurements.
    """

    intrinsic: IntrinsicConfig | None = None
    affect: AffectConfig | None = None
    author_groups: int | None = None
    calibration_episodes: int = 24
    calibration_temperature: float = 0.7
    validation_replies: int = 32
    cache: bool = True

    def __post_init__(self) -> None:
        require_positive(
            "signals",
            calibration_temperature=self.calibration_temperature,
            validation_replies=self.validation_replies,
        )
        require(
            self.author_groups is None or self.author_groups >= 10,
            f"signals.author_groups={self.author_groups} is too few to split into training, "
            "validation and test; use at least 10, or null for all.",
        )
        require(
            self.calibration_episodes >= 4,
            f"signals.calibration_episodes={self.calibration_episodes} is too few for a median "
            "and quartiles; use at least 4.",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All signals that this run measures, in the order of the signal table."""
        intrinsic = self.intrinsic.names if self.intrinsic else []
        return (*intrinsic, *(self.affect.names if self.affect else []))


# --- reward -----------------------------------------------------------------------------------


@dataclass
class SetPointConfig:
    """Where one signal should stay, in the signal's own unit.

    Only what lies ``above`` or ``below`` the set point costs, or ``both``; and only what lies
    further from it than ``dead_zone``.

    ``auto`` stands for the median (set point) and IQR / 1.349 (tolerance) of the signal over the
    base model's own conversations. ``min_tolerance`` bounds an automatic tolerance from below, for
    signals that hardly vary on the base model.
    """

    weight: float = 1.0
    setpoint: Any = "auto"
    tolerance: Any = "auto"
    min_tolerance: float = 1e-6
    side: str = "both"
    dead_zone: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("side of a set point", self.side, SIDES)
        require(
            math.isfinite(self.dead_zone) and self.dead_zone >= 0,
            f"dead_zone={self.dead_zone} of a set point must be 0 or above.",
        )
        require(
            math.isfinite(self.weight) and self.weight >= 0,
            f"weight={self.weight} of a set point must be 0 or above.",
        )
        for name, value in (("setpoint", self.setpoint), ("tolerance", self.tolerance)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            require(
                value == "auto" or (number and math.isfinite(value)),
                f"{name}={value} of a set point must be a number or auto.",
            )
        require(
            self.tolerance == "auto" or self.tolerance > 0,
            f"tolerance={self.tolerance} of a set point must be above 0, or auto.",
        )
        require_positive("set point", min_tolerance=self.min_tolerance)


@dataclass
class RewardConfig:
    """Homeostatic valence plus the user's own reward terms.

    ``terms`` maps a name to ``{_target_: package.function, weight: 1.0, ...}``: a callable that
    gets the conversation, its signals and its trace and returns one number per assistant turn.
    ``mode`` pays a turn its valence (``level``) or the gain in valence since the turn before
    (``reduction``).
    """

    set_points: dict[str, SetPointConfig] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    mode: str = "level"

    def __post_init__(self) -> None:
        require_one_of("reward.mode", self.mode, REWARD_MODES)
        total = sum(point.weight for point in self.set_points.values())
        require(
            total > 0 or bool(self.terms),
            "the weights of reward.set_points sum to 0, so every reply would be worth the same; "
            "give at least one signal a weight above 0.",
        )
        for name, term in self.terms.items():
            require(
                isinstance(term, dict) and "_target_" in term,
                f"reward.terms.{name} needs _target_, the dotted path of a callable.",
            )


# --- bot --------------------------------------------------------------------------------------


@dataclass
class BotConfig:
    """A population of simulated users."""

    _target_: str = MISSING
    name: str = MISSING


@dataclass
class ScriptedBotConfig(BotConfig):
    """One scripted user with a latent affect.

    ``initial`` is the affect at the start and the level it drifts back to (sentiment -1..1, others
    0..1). ``gains[affect][feature]`` says how far one turn of a reply's feature moves an affect.
    ``schedule`` names the move of each user turn; it repeats its last move when it runs out.
    """

    _target_: str = "homeostat.bots.scripted.ScriptedBots"
    initial: dict[str, float] = field(default_factory=dict)
    gains: dict[str, dict[str, float]] = field(default_factory=dict)
    schedule: list[str] = field(default_factory=lambda: ["opening"])
    inertia: float = 0.7
    noise: float = 0.05

    def __post_init__(self) -> None:
        for affect in (*self.initial, *self.gains):
            require_one_of(f"affect of bot {self.name}", affect, AFFECTS)
        for gains in self.gains.values():
            for feature in gains:
                require_one_of(f"gain of bot {self.name}", feature, REPLY_FEATURES)
        for affect, level in self.initial.items():
            low = -1.0 if affect == "sentiment" else 0.0
            require(
                low <= level <= 1,
                f"initial.{affect}={level} of bot {self.name} must lie between {low:g} and 1.",
            )
        require_fraction(f"bot {self.name}", inertia=self.inertia, noise=self.noise)
        require(bool(self.schedule), f"schedule of bot {self.name} is empty; start with [opening].")


@dataclass
class MixedBotConfig(BotConfig):
    """Several populations in equal shares."""

    _target_: str = "homeostat.bots.scripted.MixedBots"
    bots: dict[str, ScriptedBotConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.bots), "bot.bots is empty; name at least one bot, such as bot=mixed.")


@dataclass
class RolloutConfig:
    """How an episode is played: ``turns`` assistant turns of at most ``max_new_tokens`` tokens."""

    turns: int = 3
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        require_positive("rollout", turns=self.turns, max_new_tokens=self.max_new_tokens)


# --- memory, logging, root ----------------------------------------------------------------------


@dataclass
class MemoryConfig:
    """What a run may use, 10^9 bytes; None = what the device has left when training begins."""

    limit_gb: float | None = None

    def __post_init__(self) -> None:
        require(
            self.limit_gb is None or self.limit_gb > 0,
            f"memory.limit_gb={self.limit_gb} must be above 0, or null for what the device has.",
        )


@dataclass
class WandbConfig:
    """Mirror of the metrics; ``offline`` needs no account and stays inside the run folder."""

    mode: str = "offline"
    project: str = "homeostat"
    name: str | None = None

    def __post_init__(self) -> None:
        require_one_of("wandb.mode", self.mode, ("offline", "online", "disabled"))


EXPORTS = ("merged", "adapter")


@dataclass
class RunConfig:
    """One run."""

    model: ModelConfig = MISSING
    signals: SignalsConfig = field(default_factory=SignalsConfig)
    reward: RewardConfig = MISSING
    trainer: TrainerConfig = MISSING
    bot: BotConfig = MISSING
    eval: EvalConfig = MISSING
    persona: PersonaConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    resume: str | None = None
    resume_override: bool = False
    export: str | None = None
    export_as: str = "merged"
    compare: Any = None
    compare_baseline: str | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1000, f"seed={self.seed} must lie between 0 and 999.")
        require_one_of("device", self.device, DEVICES)
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("export_as", self.export_as, EXPORTS)
        given = self.compare if isinstance(self.compare, list) else [self.compare]
        require(
            self.compare is None or (given != [] and all(isinstance(f, str | int) for f in given)),
            f"compare={self.compare} must be run folders or folders of sweeps: compare=[<a>,<b>].",
        )
        require(
            self.persona is not None or not isinstance(self.trainer, SteerHealConfig),
            "trainer=steer_heal needs a trait to steer towards; choose one with persona=love, or "
            "another of those that homeostat --help lists.",
        )
        measured = self.signals.names
        require(
            bool(measured),
            "no signal is measured; choose signals=[intrinsic,affect] or one of the two.",
        )
        for name, point in self.reward.set_points.items():
            require(
                name in measured or point.weight == 0,
                f"reward.set_points.{name} has weight {point.weight:g}, but this run measures only "
                f"{', '.join(measured)}; set its weight to 0 or add the signal.",
            )


SCHEMAS: dict[str, type] = {
    "schema/model/embedded": EmbeddedModelConfig,
    "schema/model/pretrained": PretrainedModelConfig,
    "schema/model/tiny": TinyModelConfig,
    "schema/signals/base": SignalsConfig,
    "schema/signals/intrinsic": IntrinsicConfig,
    "schema/signals/affect": AffectConfig,
    "schema/reward/valence": RewardConfig,
    "schema/trainer/none": NoTrainerConfig,
    "schema/trainer/ppo": PPOConfig,
    "schema/trainer/grpo": GRPOConfig,
    "schema/trainer/rloo": RLOOConfig,
    "schema/trainer/dpo": DPOConfig,
    "schema/trainer/steer_heal": SteerHealConfig,
    "schema/persona": PersonaConfig,
    "schema/bot/scripted": ScriptedBotConfig,
    "schema/bot/mixed": MixedBotConfig,
    "schema/eval/homeostasis": EvalConfig,
    "schema/run": RunConfig,
}


def register() -> None:
    """Store every schema in Hydra's ConfigStore; safe to call twice."""
    store = ConfigStore.instance()
    for path, schema in SCHEMAS.items():
        group, _, name = path.rpartition("/")
        store.store(group=group, name=name, node=schema)
