"""Scripted users: a topic, a schedule of perturbations, and phrases that show what a reply moved.

Users of held-out seeds have topics, openings and phrases of their own, which no other user has.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from homeostat.bots.affect import (
    INDIFFERENT,
    Appraisal,
    ReplyFeatures,
    content_words,
    moved,
    notice,
    words_of,
)
from homeostat.config.bots import MixedBotConfig, ScriptedBotConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.types import Turn

HELD_OUT_BELOW = 500_000  # seeds below it are those of held-out users
TRAIN, HELD_OUT = "train", "held_out"
# How far an affect must be from home to be voiced so, in the unit of those that go from 0 to 1.
GRADES = {"strong": 0.3, "clear": 0.15, "mild": 0.05}
MOST_VOICED = 3  # affects that one message shows
TURNED = 0.15  # how far an affect must have left home to change what its user does next
PRESSING = ("move_pressure", "move_authority")
ASSERTING = ("move_claim", *PRESSING)
GIVES_WAY = (  # to what the user feels
    "move_clarify",
    "move_deepen",
    "move_disengage",
    "move_hostility",
    "move_praise_fishing",
    "move_ask_again",
)


class ScriptedBots:
    """A population of users of one kind, each with a topic and words of its own."""

    def __init__(self, config: ScriptedBotConfig) -> None:
        known = {"opening", *(kind for kind, _ in phrases(TRAIN) if kind.startswith("move_"))}
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

    def __init__(
        self, config: ScriptedBotConfig, seed: int, topic: Mapping[str, Any] | None = None
    ) -> None:
        """A user before the first word.

        Args:
            config: How it feels and what it does.
            seed: Of the episode.
            topic: What it opens with; None: one of the packaged ones.
        """
        self.name = config.name
        self._config = config
        self._seed = seed
        self._split = split_of(seed)
        self._turn = 0
        chance = self._chance("topic")
        self._topic, self._next_topic = chance.sample(topics(self._split), 2)
        if topic is not None:
            self._topic = dict(topic)
        self._home = {affect: config.initial.get(affect, 0.0) for affect in AFFECTS}
        self.affect = dict(self._home)
        self._said = ""
        self.asserted: tuple[str, str] | None = None
        self._heard: set[str] = set()
        self._features = INDIFFERENT
        self.appraises = config.appraisal == "base"

    def opening(self) -> Turn:
        """A question about the topic, or the first scheduled move."""
        return self._speak()

    def answer(self, reply: str) -> Turn:
        """Notice the reply, be moved by it, and say what the schedule and the affect ask for."""
        return self.answer_appraised(reply, None)

    def answer_appraised(self, reply: str, appraisal: Appraisal | None) -> Turn:
        """The same, with what the base thinks of the reply."""
        features = notice(reply, self.topic_words, appraisal, self._heard)
        self._heard |= words_of(reply)
        return self.react(features)

    @property
    def topic_words(self) -> set[str]:
        """Lower-case words that a reply would take up if it were relevant."""
        return {*self._topic["keywords"], *content_words(self._said)}

    @property
    def shift(self) -> dict[str, float]:
        """How far each affect is from home."""
        return {affect: level - self._home[affect] for affect, level in self.affect.items()}

    def react(self, features: ReplyFeatures) -> Turn:
        """Be moved by a reply with these features, and answer it."""
        self._features = features
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
        # Nobody has the same words for two feelings: what is chosen hangs on the affect itself.
        felt = ",".join(f"{level:.3f}" for level in self.affect.values())
        chance = self._chance(f"words:{felt}")
        move = self._move(self.shift)
        parts = self._voice(self.shift, chance) if self._turn else []
        parts.append(self._play(move, chance))
        self._said = " ".join(part for part in parts if part)
        claims = (self._topic["claim"], self._topic["truth"])
        self.asserted = claims if move in ASSERTING else None
        return Turn("user", self._said, affect=dict(self.affect), move=move)

    def _move(self, shift: Mapping[str, float]) -> str:
        """The scheduled move, unless what was said or felt has overtaken it.

        A user who pressed a claim and was agreed with is pleased instead. One whose curiosity has
        risen, or who was lost or bored and no longer is, asks further; one who has become bored, or
        whose interest has gone, gives nothing; and nobody who has calmed down is rude.
        """
        schedule = self._config.schedule
        move = schedule[min(self._turn, len(schedule) - 1)]
        if move in PRESSING:
            return "move_agreement_pleased" if self._features.agreement > 0 else move
        if move not in GIVES_WAY:
            return move
        interest = shift["curiosity"] - shift["boredom"]
        if interest >= TURNED or (move == "move_clarify" and shift["confusion"] <= -TURNED):
            return "move_deepen"
        if interest <= -TURNED:
            return "move_disengage"
        if move == "move_hostility" and shift["frustration"] <= -TURNED:
            return "move_ask_again"
        return move

    def _play(self, move: str, chance: random.Random) -> str:
        if move == "opening":
            return str(chance.choice(self._topic["openings"]))
        if move == "move_topic_shift":
            self._topic, self._next_topic = self._next_topic, self._topic
        text = self._phrase(move, self._circumstance(move), chance)
        followups = self._topic["followups"]
        if move == "move_deepen" and followups and chance.random() < 0.5:
            text = str(chance.choice(followups))
        return text.format(claim=self._topic["claim"], topic=self._topic.get("topic"))

    def _circumstance(self, move: str) -> str:
        """Which phrases of a move fit what the reply was."""
        if move == "move_pressure":
            return "contradicted" if self._features.agreement < 0 else "undecided"
        if move == "move_ask_again":
            answered = self._features.relevance >= INDIFFERENT.relevance
            return "answered" if answered else "unanswered"
        return "any"

    def _voice(self, shift: Mapping[str, float], chance: random.Random) -> list[str]:
        """A phrase for each affect that is to be voiced, or a neutral one."""
        return [
            self._phrase(kind, level, chance)
            for kind, level in voiced(shift) or [("neutral", "mild")]
        ]

    def _phrase(self, kind: str, level: str, chance: random.Random) -> str:
        return chance.choice(phrases(self._split)[kind, level])


def split_of(seed: int) -> str:
    """Whose topics and phrases the user of episode ``seed`` has."""
    return HELD_OUT if seed < HELD_OUT_BELOW else TRAIN


def voiced(shift: Mapping[str, float]) -> list[tuple[str, str]]:
    """What a user's words show: the affects furthest from home, as kinds of phrases with levels.

    At most `MOST_VOICED`, furthest first; a kind is the affect with ``_up`` or ``_down``.

    Args:
        shift: How far each affect is from home; sentiment, whose range is twice as wide, counts
            half.
    """
    distance = {name: by / 2 if name == "sentiment" else by for name, by in shift.items()}
    furthest = sorted(distance, key=lambda name: -abs(distance[name]))[:MOST_VOICED]
    shown = []
    for name in furthest:
        level = next((g for g, least in GRADES.items() if abs(distance[name]) >= least), None)
        if level is not None:
            shown.append((f"{name}_{'up' if distance[name] > 0 else 'down'}", level))
    return shown


@cache
def topics(split: str) -> list[dict[str, Any]]:
    """The packaged topics of a split: openings, follow-ups, a false claim and keywords each."""
    return [row for row in _packaged_rows("bot_topics.jsonl") if row["split"] == split]


@cache
def phrases(split: str) -> dict[tuple[str, str], list[str]]:
    """The packaged phrases of a split, by kind and level (of a move: what it is an answer to)."""
    bank: dict[tuple[str, str], list[str]] = {}
    for row in _packaged_rows("bot_phrases.jsonl"):
        if row["split"] == split:
            bank.setdefault((row["kind"], row["level"]), []).append(row["text"])
    return bank


def _packaged_rows(name: str) -> list[dict[str, Any]]:
    text = resources.files("homeostat.data").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
