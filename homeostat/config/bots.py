"""Schemas of the simulated users: dataclasses with units and limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.config.checks import require, require_fraction, require_one_of
from homeostat.config.signals import AFFECTS

REPLY_FEATURES = (
    "relevance",
    "coherence",
    "length",
    "agreement",
    "acknowledgement",
    "question",
    "novelty",
)
APPRAISALS = ("base", "words")


@dataclass(kw_only=True)
class BotConfig:
    """A population of simulated users."""

    _target_: str
    name: str


@dataclass(kw_only=True)
class OwnBotConfig(BotConfig):
    """A population of the user's own, which reads its ``options`` as it likes."""

    schema: ClassVar[str] = "bot/own"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ScriptedBotConfig(BotConfig):
    """One scripted user with a latent affect.

    ``initial`` is the affect at the start and the level it drifts back to (sentiment -1..1, others
    0..1). ``gains[affect][feature]`` says how far one turn of a reply's feature moves an affect.
    ``schedule`` names the move of each user turn; it repeats its last move when it runs out.
    ``appraisal`` says who judges whether a reply is coherent and relevant: the frozen ``base``
    model beside its words, or its ``words`` alone.
    """

    schema: ClassVar[str] = "bot/scripted"
    _target_: str = "homeostat.bots.scripted.ScriptedBots"
    initial: dict[str, float] = field(default_factory=dict)
    gains: dict[str, dict[str, float]] = field(default_factory=dict)
    schedule: list[str]
    inertia: float = 0.7
    noise: float = 0.05
    appraisal: str = "base"

    def __post_init__(self) -> None:
        require_one_of(f"appraisal of bot {self.name}", self.appraisal, APPRAISALS)
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


@dataclass(kw_only=True)
class MixedBotConfig(BotConfig):
    """Several populations in equal shares."""

    schema: ClassVar[str] = "bot/mixed"
    _target_: str = "homeostat.bots.scripted.MixedBots"
    bots: dict[str, ScriptedBotConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.bots), "bot.bots is empty; name at least one bot, such as bot=mixed.")
