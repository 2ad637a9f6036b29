"""Schemas of the reward: dataclasses with types, units and limits; no torch import."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.config.checks import require, require_one_of, require_positive
from homeostat.config.signals import PATHWISE_SIGNALS

REWARD_MODES = ("level", "reduction")
SIDES = ("both", "above", "below")
TRANSFORMS = ("none", "log")
COMBINATIONS = ("sum", "decoupled")
AFFECT_SOURCES = ("read", "felt", "yoked")
LEVELS = ("read", "felt")


@dataclass(kw_only=True)
class SetPointConfig:
    """Where one signal should stay, in the signal's own unit.

    Only what lies ``above`` or ``below`` the set point costs, or ``both``; and only what lies
    further from it than ``dead_zone``. With ``transform=log`` distances are those of logarithms:
    ``tolerance``, ``min_tolerance`` and ``dead_zone`` are then in nats, ``setpoint`` stays in the
    signal's unit.

    ``auto`` stands for the median (set point) and IQR / 1.349 (tolerance) of the signal over the
    base model's own conversations. ``min_tolerance`` bounds an automatic tolerance from below, for
    signals that hardly vary on the base model. ``reason`` says why a stated set point is where it
    is, for people.
    """

    weight: float
    setpoint: Any = "auto"
    tolerance: Any = "auto"
    min_tolerance: float
    side: str = "both"
    dead_zone: float = 0.0
    transform: str = "none"
    reason: str = ""

    def __post_init__(self) -> None:
        require_one_of("side of a set point", self.side, SIDES)
        require_one_of("transform of a set point", self.transform, TRANSFORMS)
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
            self.transform == "none" or self.setpoint == "auto" or self.setpoint > 0,
            f"setpoint={self.setpoint} of a set point has no logarithm; give one above 0, auto, or "
            "transform=none.",
        )
        require(
            self.tolerance == "auto" or self.tolerance > 0,
            f"tolerance={self.tolerance} of a set point must be above 0, or auto.",
        )
        require_positive("set point", min_tolerance=self.min_tolerance)


@dataclass(kw_only=True)
class RewardConfig:
    """Homeostatic valence plus the user's own reward terms.

    ``terms`` maps a name to ``{_target_: package.function, weight: 1.0, ...}``: a callable that
    gets the conversation, its signals and its trace and returns one number per assistant turn.
    ``mode`` pays a turn its valence (``level``) or the gain in valence since the turn before
    (``reduction``). ``combine`` adds the terms up (``sum``) or brings each to the same spread
    within its group or batch first (``decoupled``). ``affect`` says whose feelings count: those
    that are ``read`` from the user's words; those that the bot has ``felt``, an upper bound; or
    those read from another user (``yoked``), a control with the same distribution and nothing to
    earn. Own terms get the same.
    ``levels`` says what the stated levels of an affect are: of what is ``read``, or of what is
    ``felt``. Probes draw strong feelings towards the middle; a felt level is moved to where the
    probe reads it, along the line that the headroom of the run has measured.
    ``pathwise`` follows signals that are differentiable functions of the policy, and the price of
    KL, by their own derivative; see `homeostat.trainers.pathwise`.
    """

    schema: ClassVar[str] = "reward/valence"
    set_points: dict[str, SetPointConfig] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    mode: str = "level"
    combine: str = "sum"
    affect: str = "read"
    levels: str = "read"
    pathwise: bool = False

    def __post_init__(self) -> None:
        require_one_of("reward.mode", self.mode, REWARD_MODES)
        require_one_of("reward.combine", self.combine, COMBINATIONS)
        require_one_of("reward.affect", self.affect, AFFECT_SOURCES)
        require_one_of("reward.levels", self.levels, LEVELS)
        require(
            self.levels == "read" or self.affect != "felt",
            "reward.levels=felt moves set points to where a probe reads them, and with "
            "reward.affect=felt nothing is read; use reward.levels=read.",
        )
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
        if self.pathwise:
            self._require_something_to_follow()

    def _require_something_to_follow(self) -> None:
        weighted = {name for name, point in self.set_points.items() if point.weight > 0}
        signals = ", ".join(PATHWISE_SIGNALS)
        require(
            not weighted.isdisjoint(PATHWISE_SIGNALS),
            f"reward.pathwise=true follows the set points of {signals}, and none of these has a "
            "weight above 0; give one a weight, or use reward.pathwise=false.",
        )
        require(
            self.mode == "level",
            f"reward.pathwise=true follows the level of valence, and reward.mode={self.mode} pays "
            "something else; use reward.mode=level, or reward.pathwise=false.",
        )
