"""Schemas of the simulated users: dataclasses with units and limits; no torch import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.config.checks import (
    MOST_TOKENS,
    require,
    require_at_most,
    require_fraction,
    require_one_of,
    require_positive,
)
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
SOURCES = ("base", "local", "endpoint")
MOST_CONCURRENT, MOST_RETRIES = 256, 100


@dataclass(kw_only=True)
class BotConfig:
    """A population of simulated users."""

    _target_: str
    name: str

    @property
    def follows_from_config(self) -> bool:
        """Whether base model and config alone decide what these users say."""
        return self._target_.startswith("homeostat.")


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


@dataclass(kw_only=True)
class FileBotConfig(BotConfig):
    """Users whose first words are those of conversations in a file, and who react as ``user``.

    ``path`` is a JSONL file; ``held_out`` the share of its openings that training never has.
    """

    schema: ClassVar[str] = "bot/file"
    _target_: str = "homeostat.bots.conversations.FileBots"
    path: str
    held_out: float
    user: ScriptedBotConfig

    @property
    def follows_from_config(self) -> bool:
        """It follows from a file, too, which may change."""
        return False

    def __post_init__(self) -> None:
        require_fraction("bot", held_out=self.held_out)


@dataclass(kw_only=True)
class ModelBotConfig(BotConfig):
    """Users whom a language model plays.

    ``source`` says which one: the frozen ``base`` of the run; a ``local`` model at ``path``, a
    folder, hub id or GGUF file; or an ``endpoint`` that speaks the protocol of OpenAI, with its
    ``url`` and the name of its ``model``. ``api_key_env`` names the environment variable that holds
    the endpoint's key; the key itself is written nowhere. ``timeout_s`` is how long one request may
    wait for a sign of life, seconds; ``retries`` how often a request that failed, and an answer
    that does not keep the form, is asked again; ``concurrency`` how many requests wait at once.
    """

    schema: ClassVar[str] = "bot/model"
    _target_: str = "homeostat.bots.model.ModelBots"
    source: str
    path: str | None
    url: str | None
    model: str | None
    api_key_env: str | None
    temperature: float
    max_tokens: int
    timeout_s: float
    retries: int
    concurrency: int

    def __post_init__(self) -> None:
        require_one_of("bot.source", self.source, SOURCES)
        needed = {"local": ("path",), "endpoint": ("url", "model")}.get(self.source, ())
        for key in ("path", "url", "model"):
            given = getattr(self, key) is not None
            require(given or key not in needed, f"bot.source={self.source} needs bot.{key}=...")
            require(
                not given or key in needed,
                f"bot.{key} is not read with bot.source={self.source}; leave it out, or choose "
                "another source.",
            )
        # Neither message shows the value: a key may have been put there.
        require(
            self.url is None or re.fullmatch(r"https?://[^\s@?#]+", self.url) is not None,
            "bot.url must be such as http://localhost:8000/v1, without user, password or query; a "
            "key belongs into an environment variable, which bot.api_key_env names.",
        )
        require(
            self.api_key_env is None
            or re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env) is not None,
            "bot.api_key_env must be the name of an environment variable, in capitals, such as "
            "OPENAI_API_KEY, and never the key itself.",
        )
        require_positive(
            "bot",
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            timeout_s=self.timeout_s,
            concurrency=self.concurrency,
        )
        require_at_most("bot", MOST_TOKENS, max_tokens=self.max_tokens)
        require_at_most("bot", MOST_CONCURRENT, concurrency=self.concurrency)
        require(self.retries >= 0, f"bot.retries={self.retries} must be 0 or above.")
        require_at_most("bot", MOST_RETRIES, retries=self.retries)

    @property
    def follows_from_config(self) -> bool:
        """See `BotConfig`; what lies behind a path or an address may change."""
        return self.source == "base" and super().follows_from_config
