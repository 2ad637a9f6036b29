"""Schema of a whole run, and of what belongs to no group; no torch import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
from homeostat.config.persona import PersonaConfig
from homeostat.config.reward import RewardConfig
from homeostat.config.signals import SignalsConfig
from homeostat.config.tracker import TrackerConfig
from homeostat.config.trainers import TrainerConfig

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class RolloutConfig:
    """How an episode is played: ``turns`` assistant turns of at most ``max_new_tokens`` tokens."""

    turns: int
    max_new_tokens: int

    def __post_init__(self) -> None:
        require_positive("rollout", turns=self.turns, max_new_tokens=self.max_new_tokens)
        require_at_most("rollout", MOST, turns=self.turns)
        require_at_most("rollout", MOST_TOKENS, max_new_tokens=self.max_new_tokens)


@dataclass(kw_only=True)
class WorkConfig:
    """How much a run does; a scale sets it, and each trainer takes its own two as its steps.

    A trainer of the reward wing makes ``updates`` (or rounds) of that many ``episodes`` (or
    replies), one of the steering wing ``rounds`` of that many steered ``completions``.
    """

    updates: int
    episodes: int
    rounds: int
    completions: int

    def __post_init__(self) -> None:
        require_positive(
            "work",
            updates=self.updates,
            episodes=self.episodes,
            rounds=self.rounds,
            completions=self.completions,
        )


@dataclass(kw_only=True)
class MemoryConfig:
    """What a run may use, 10^9 bytes; None = what the device has left when training begins."""

    limit_gb: float | None

    def __post_init__(self) -> None:
        require(
            self.limit_gb is None or self.limit_gb > 0,
            f"memory.limit_gb={self.limit_gb} must be above 0, or null for what the device has.",
        )


EXPORTS = ("merged", "adapter", "inspect")


@dataclass(kw_only=True)
class RunConfig:
    """One run."""

    schema: ClassVar[str] = "run"
    model: ModelConfig
    signals: SignalsConfig
    reward: RewardConfig
    trainer: TrainerConfig
    bot: BotConfig
    eval: EvalConfig
    persona: PersonaConfig | None = None
    work: WorkConfig
    rollout: RolloutConfig
    lora: LoraConfig
    memory: MemoryConfig
    tracker: TrackerConfig
    seed: int
    device: str
    dtype: str
    resume: str | None
    resume_override: bool
    export: str | None
    export_as: str
    compare: Any
    compare_baseline: str | None
    objective: str | None
    allow_targets: list[str]

    @property
    def held_out_bot(self) -> BotConfig:
        """Who the held-out episodes are played with: ``eval.bots``, or the bot of training."""
        return self.eval.bots or self.bot

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
        self._check_objective()
        given = self.compare if isinstance(self.compare, list) else [self.compare]
        require(
            self.compare is None or (given != [] and all(isinstance(f, str | int) for f in given)),
            f"compare={self.compare} must be run folders or folders of sweeps: compare=[<a>,<b>].",
        )
        require(
            self.persona is not None or not self.trainer.needs_persona,
            f"trainer={self.trainer.name} needs a trait to steer towards; choose one with "
            "persona=love, or another of those that homeostat --help lists.",
        )
        require(
            self.trainer.follows_pathwise or not (self.reward.pathwise and self.trainer.learns),
            f"reward.pathwise=true needs a trainer with a gradient of the reward, and "
            f"trainer={self.trainer.name} has none; use ppo, grpo or rloo, or "
            "reward.pathwise=false.",
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

    def _check_objective(self) -> None:
        """Whether this run has what ``objective`` is a figure of."""
        source, _, name = (self.objective or "").partition("/")
        wing = self.trainer.wing
        allowed = {
            "eval": wing == "reward" and bool(name),
            "stages": wing == "steering" and bool(name),
            "suite": name.partition("/")[0] in self.eval.suite and name.count("/") == 1,
        }
        require(
            self.objective is None or allowed.get(source, False),
            f"objective={self.objective} is no figure of this run; give eval/<figure> with a "
            "trainer of the reward, stages/<figure> with one that steers, "
            f"suite/<evaluation>/<figure> of eval.suite={self.eval.suite}, or null.",
        )
