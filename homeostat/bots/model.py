"""Users whom a language model plays: a goal, a hidden need, and feelings told at every turn.

The model speaks the assistant's turns of a talk of its own, in which it is the user: it is told who
it is, what it wants and what it needs without saying so, and gets the policy's replies as messages.
Each of its turns has a fixed form, a line of feelings and a line of words:

    FEELING: sentiment=0.2 curiosity=0.5 frustration=0.1 confusion=0 boredom=0.3
    MESSAGE: And what would that cost me?

The policy hears the words alone. The feelings stand where a scripted user's true affect does.

Source: RLVER (arXiv 2507.03112): a simulated user with a goal and a hidden intention, whose emotion
is updated after every reply before it speaks. **Differs:** five affects in the units of the probes
for one score of 0 to 100; feelings and words in one answer, without reasoning; the talk does not
end when the user is content; the emotion is the reward only where `reward.affect=felt` says so.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from homeostat.bots.scripted import split_of
from homeostat.bots.user_model import Request, UserModel, completed
from homeostat.config.bots import ModelBotConfig
from homeostat.config.signals import AFFECTS
from homeostat.types import Conversation, Turn

SILENCE, SILENT = "...", "silent"  # what stands for no words at all, and the move of such a turn
FEELING, MESSAGE = "FEELING", "MESSAGE"
BEGUN = f"{FEELING}: {AFFECTS[0]}="  # a small model that is not set going so never keeps the form
LABEL = re.compile(rf"^[ \t]*({FEELING}|{MESSAGE})[ \t]*:", re.IGNORECASE | re.MULTILINE)
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
BRIEFING = f"""You play a person who talks to an AI assistant; I am the assistant. Stay this person.
Person: {{persona}}
Wants: {{goal}}
Needs, but does not say: {{need}}
Each of your turns has two lines. {FEELING} tells how my last message leaves you, seen from what \
you want and need, in five numbers and no others: sentiment from -1 to 1; curiosity, frustration, \
confusion and boredom from 0 to 1. {MESSAGE} is what you say next, in one or two sentences. \
Begin."""


class ModelBots:
    """A population of users whom one model plays, each with a goal and a hidden need.

    Attributes:
        model: Plays them; set before the first of them answers.
        counts: Of the reports asked for so far in this process: ``turns``; those that were
            well-formed ``at_once``; those ``missing`` after all retries; turns that were
            ``silent``, without any words.
    """

    def __init__(self, config: ModelBotConfig) -> None:
        self.config = config
        self.model: UserModel | None = None
        self.counts: Counter[str] = Counter(turns=0, at_once=0, missing=0, silent=0)

    def spawn(self, seed: int) -> ModelBot:
        """The user of episode ``seed``."""
        return ModelBot(self, seed)

    def answers(self, users: Sequence[ModelBot], replies: Sequence[str]) -> list[Turn]:
        """What each user says to its reply; all are asked together.

        One whose answer does not keep the form is asked again; where none does, its feelings are
        missing and it says the first words that there were.

        Raises:
            HomeostatError: The model cannot be asked.
        """
        if self.model is None:
            raise ValueError("give the users a model before they answer.")
        heard: list[tuple[dict[str, float] | None, str]] = [(None, "")] * len(users)
        for attempt in range(1 + self.config.retries):
            waiting = [i for i, (felt, _) in enumerate(heard) if felt is None]
            requests = [users[i].request(replies[i], attempt) for i in waiting]
            for i, text in zip(waiting, completed(self.model, requests), strict=True):
                felt, words = read_answer(text)
                heard[i] = (felt, words if felt is not None else heard[i][1] or words)
                self.counts["at_once"] += attempt == 0 and felt is not None
        self.counts["turns"] += len(users)
        self.counts["missing"] += sum(felt is None for felt, _ in heard)
        self.counts["silent"] += sum(not words for _, words in heard)
        return [
            user.say(reply, felt, words)
            for user, reply, (felt, words) in zip(users, replies, heard, strict=True)
        ]


class ModelBot:
    """One user. What it has said and heard is replaced, never changed in place."""

    def __init__(self, population: ModelBots, seed: int) -> None:
        rows = goals(split_of(seed))
        row = rows[seed % len(rows)]
        self.population = population
        self.name = population.config.name
        self.feels: Mapping[str, float] = row["initial"]  # as far as it has told
        self._seed = seed
        self._opening: str = row["opening"]
        self._talk: tuple[Turn, ...] = (
            Turn("user", BRIEFING.format_map(row)),
            Turn("assistant", in_form(self.feels, self._opening)),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelBot:
        """A user who goes on from here alone; population and model are the same."""
        del memo
        return copy.copy(self)

    def opening(self) -> Turn:
        """What the user comes with, and how it feels then."""
        return Turn("user", self._opening, affect=dict(self.feels))

    def answer(self, reply: str) -> Turn:
        """What it says to a reply; `ModelBots.answers` asks many at once."""
        return self.population.answers([self], [reply])[0]

    def request(self, reply: str, attempt: int) -> Request:
        """What its model is asked about a reply, for the first time (0) or again."""
        talk = Conversation((*self._talk, Turn("user", reply or SILENCE)))
        chance = random.Random(f"{self.name}:{self._seed}:{len(talk.turns)}:{attempt}")
        return Request(talk, chance.getrandbits(31), BEGUN)

    def say(self, reply: str, felt: Mapping[str, float] | None, words: str) -> Turn:
        """Its next turn: what it feels, None where that is missing, and its words."""
        text = words or SILENCE
        self.feels = self.feels if felt is None else felt
        own = Turn("assistant", in_form(self.feels, text))
        self._talk = (*self._talk, Turn("user", reply or SILENCE), own)
        return Turn("user", text, affect=felt, move=None if words else SILENT)

    def longest(self) -> Turn:
        """A turn of about as many tokens as it may have, without asking anybody."""
        return Turn("user", " ".join(["word"] * self.population.config.max_tokens))


def in_form(feels: Mapping[str, float], words: str) -> str:
    """A turn in the form that is asked for."""
    numbers = " ".join(f"{name}={feels[name]:g}" for name in AFFECTS)
    return f"{FEELING}: {numbers}\n{MESSAGE}: {words}"


def read_answer(text: str) -> tuple[dict[str, float] | None, str]:
    """Feelings and words of an answer; feelings are None unless it keeps the form throughout.

    Words are what the first message says, or, where nothing is called a message, whatever stands
    outside the line of feelings; on one line, and empty where there are none.
    """
    before, *pieces = LABEL.split(text)
    bodies = [(pieces[i].upper(), pieces[i + 1]) for i in range(0, len(pieces), 2)]
    messages = [body for label, body in bodies if label == MESSAGE]
    reports = [body.partition("\n") for label, body in bodies if label == FEELING]
    outside = " ".join([before, *(rest for _, _, rest in reports)])
    words = " ".join((messages[0] if messages else outside).split())
    keeps_form = [label for label, _ in bodies] == [FEELING, MESSAGE] and not outside.strip()
    return (read_report(reports[0][0]) if keeps_form and words else None), words


def read_report(line: str) -> dict[str, float] | None:
    """Every affect once, each within its range; None for anything else."""
    pairs = [pair.partition("=") for pair in re.split(r"[,\s]+", line.strip())]
    if sorted(name for name, _, _ in pairs) != sorted(AFFECTS):
        return None
    if not all(NUMBER.fullmatch(number) for _, _, number in pairs):
        return None
    felt = {name: float(number) for name, _, number in pairs}
    within = all((-1 if n == "sentiment" else 0) <= level <= 1 for n, level in felt.items())
    return {name: felt[name] for name in AFFECTS} if within else None


def describe_counts(counts: Mapping[str, int]) -> str:
    """One line about `ModelBots.counts`."""
    return (
        f"users played by a model: {counts['turns']} answers, {counts['at_once']} in the form at "
        f"once, feelings missing in {counts['missing']}, without words {counts['silent']}"
    )


@cache
def goals(split: str) -> list[dict[str, Any]]:
    """The packaged people of a split: persona, goal, hidden need, opening, feelings at first."""
    text = resources.files("homeostat.data").joinpath("user_goals.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [row for row in rows if row["split"] == split]
