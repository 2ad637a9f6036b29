"""Schema of a whole run, and of what belongs to no group; no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from homeostat.config.bots import BotConfig
from homeostat.config.checks import (
    MOST,
    MOST_TOKENS,
    require,
    require_at_most,
    require_one_of,
    require_positive,
)
from homeostat.config.evals import EvalConfig
from homeostat.config.model import LoraConfig, ModelConfig
from homeostat.config.reward import RewardConfig
from homeostat.config.signals import SignalsConfig
from homeostat.config.steering import PersonaConfig, SteerHealConfig
from homeostat.config.trainers import TrainerConfig

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class RolloutConfig:
    """How an episode is played: ``turns`` assistant turns of at most ``max_new_tokens`` tokens."""

    turns: int = 3
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        require_positive("rollout", turns=self.turns, max_new_tokens=self.max_new_tokens)
        require_at_most("rollout", MOST, turns=self.turns)
        require_at_most("rollout", MOST_TOKENS, max_new_tokens=self.max_new_tokens)


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
        chosen = [key for key in ("resume", "export", "compare") if getattr(self, key) is not None]
        require(
            len(chosen) <= 1,
            f"{' and '.join(chosen)} exclude each other; choose one, and do the other after it.",
        )
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
