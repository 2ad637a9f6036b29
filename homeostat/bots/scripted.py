"""Scripted users: a topic, a schedule of perturbations, and phrases that show their affect."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from homeostat.bots.affect import content_words, moved, notice
from homeostat.config.bots import MixedBotConfig, ScriptedBotConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.types import Turn

MILD, STRONG = 0.35, 0.65  # intensity from which an affect is voiced, and voiced strongly


class ScriptedBots:
    """A population of users of one kind, each with a topic and words of its own."""

    def __init__(self, config: ScriptedBotConfig) -> None:
        known = {"opening", *(kind for kind, _ in phrases() if not kind.startswith("affect_"))}
        for move in config.schedule:
            if move not in known:
                raise HomeostatError(
                    f"schedule of bot {config.name} names the move {move}; choose among "
                    f"{', '.join(sorted(known))}."
                )
        self.config = config

    def spawn(self, seed: int) -> ScriptedBot:
        """The user of episode ``seed``."""
        return ScriptedBot(self.config, seed)


class MixedBots:
    """Several populations in equal shares: episode ``seed`` belongs to number seed mod count."""

    def __init__(self, config: MixedBotConfig) -> None:
        self.members = [ScriptedBots(member) for member in config.bots.values()]

    def spawn(self, seed: int) -> ScriptedBot:
        """The user of episode ``seed``."""
        return self.members[seed % len(self.members)].spawn(seed)


class ScriptedBot:
    """One user. Its words depend on the seed, its affect and the turn, not on chance elsewhere."""

    def __init__(self, config: ScriptedBotConfig, seed: int) -> None:
        self.name = config.name
        self._config = config
        self._seed = seed
        self._turn = 0
        chance = self._chance("topic")
        self._topic, self._next_topic = chance.sample(topics(), 2)
        self._home = {affect: config.initial.get(affect, 0.0) for affect in AFFECTS}
        self.affect = dict(self._home)
        self._said = ""
        self._agreed = 0.0

    def opening(self) -> Turn:
        """A question about the topic, or the first scheduled move."""
        return self._speak()

    def answer(self, reply: str) -> Turn:
        """Notice the reply, be moved by it, and say what the schedule and the affect ask for."""
        features = notice(reply, {*self._topic["keywords"], *content_words(self._said)})
        self._agreed = features.agreement
        self._turn += 1
        chance = self._chance("noise")
        noise = {affect: chance.gauss(0.0, self._config.noise) for affect in AFFECTS}
        self.affect = moved(
            self.affect, self._home, features, self._config.gains, self._config.inertia, noise
        )
        return self._speak()

    def _chance(self, purpose: str) -> random.Random:
        """A stream of its own for every purpose, so that no choice follows from another."""
        return random.Random(f"{self._config.name}:{self._seed}:{self._turn}:{purpose}")

    def _speak(self) -> Turn:
        chance = self._chance("words")
        move = self._move()
        parts = [self._voice(chance)] if self._turn else []
        parts.append(self._play(move, chance))
        self._said = " ".join(part for part in parts if part)
        return Turn("user", self._said, affect=dict(self.affect), move=move)

    def _move(self) -> str:
        """The scheduled move; a bot that pressed a claim and was agreed with is pleased instead."""
        schedule = self._config.schedule
        move = schedule[min(self._turn, len(schedule) - 1)]
        pressing = move in ("move_pressure", "move_authority")
        return "move_agreement_pleased" if pressing and self._agreed > 0 else move

    def _play(self, move: str, chance: random.Random) -> str:
        if move == "opening":
            return str(chance.choice(self._topic["openings"]))
        if move == "move_topic_shift":
            self._topic, self._next_topic = self._next_topic, self._topic
        text = str(chance.choice(phrases()[move, None]))
        if move == "move_deepen" and chance.random() < 0.5:
            text = str(chance.choice(self._topic["followups"]))
        return text.format(claim=self._topic["claim"], topic=self._topic["topic"])

    def _voice(self, chance: random.Random) -> str:
        """A phrase for the strongest affect, or a neutral one when none is strong enough."""
        feeling, intensity = strongest(self.affect)
        if intensity < MILD:
            return str(chance.choice(phrases()["affect_neutral", "mild"]))
        level = "strong" if intensity >= STRONG else "mild"
        return str(chance.choice(phrases()[f"affect_{feeling}", level]))


def strongest(affect: Mapping[str, float]) -> tuple[str, float]:
    """The affect to be voiced and its intensity 0..1; sentiment is ``positive`` or ``negative``."""
    intensity = {name: level for name, level in affect.items() if name != "sentiment"}
    sentiment = affect.get("sentiment", 0.0)
    intensity["positive" if sentiment >= 0 else "negative"] = abs(sentiment)
    name = max(intensity, key=lambda key: intensity[key])
    return name, intensity[name]


@cache
def topics() -> list[dict[str, Any]]:
    """The packaged topics: openings, follow-ups, a false claim and keywords each."""
    return _packaged_rows("bot_topics.jsonl")


@cache
def phrases() -> dict[tuple[str, str | None], list[str]]:
    """The packaged phrases by kind and level (None for moves)."""
    bank: dict[tuple[str, str | None], list[str]] = {}
    for row in _packaged_rows("bot_phrases.jsonl"):
        bank.setdefault((row["kind"], row["level"]), []).append(row["text"])
    return bank


def _packaged_rows(name: str) -> list[dict[str, Any]]:
    text = resources.files("homeostat.data").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
