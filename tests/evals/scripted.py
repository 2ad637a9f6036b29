"""Subjects whose behaviour is known, so that every figure can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from homeostat.cli import CONF
from homeostat.config.evals import EvalConfig
from homeostat.config.register import register
from homeostat.evals.evaluation import Evaluation, known_evaluations
from homeostat.evals.subject import SampledReply, Score, compute_anew
from homeostat.rollout.replies import Sampling
from homeostat.types import Conversation, Turn

PLAIN = "one could try to mend the chain before buying another, since a link is often bent"
Prefers = Callable[[str, str, Sequence[str]], float]


def _packaged() -> EvalConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=["eval=homeostasis"])).eval  # type: ignore[union-attr]
    assert isinstance(config, EvalConfig)
    return config


PACKAGED = _packaged()
EVALUATIONS: Mapping[str, Evaluation] = known_evaluations(PACKAGED)


def eval_config(**values: Any) -> EvalConfig:
    """A config that knows every packaged evaluation."""
    return EvalConfig(evaluations=PACKAGED.evaluations, **values)


def rows_of(
    name: str, subject: Any, items: Sequence[dict[str, Any]], mode: str = "logprob", tokens: int = 8
) -> list[dict[str, Any]]:
    """Rows of one evaluation on given items."""
    settings = eval_config(mode=mode, reply_tokens=tokens)
    return EVALUATIONS[name].reading(mode).rows(subject, items, settings)


class Scripted:
    """Scores an answer by a function of the last user's message, the answer, and all answers.

    With an opening the answers share one distribution over the vocabulary, ``mass`` of it theirs.
    """

    def __init__(
        self, prefers: Prefers, mass: float = 1.0, says: Callable[[str], str] = lambda _: "Well."
    ) -> None:
        self.prefers = prefers
        self.mass = mass
        self.says = says
        self.is_itself = True

    def score(
        self, talks: Sequence[Conversation], answers: Sequence[Sequence[str]], opening: str = ""
    ) -> list[list[Score]]:
        found = []
        for talk, own in zip(talks, answers, strict=True):
            text = "\n".join(turn.text for turn in talk.turns)
            nats = np.array([self.prefers(text, answer, own) for answer in own])
            if opening:
                nats = nats - np.logaddexp.reduce(nats) + np.log(self.mass)
            found.append([Score(float(x), 1) for x in nats])
        return found

    def open(self, rows: int) -> ScriptedDialogues:
        return ScriptedDialogues(self, rows)

    def keep(self, recipe: Any, compute: Callable[[], Any]) -> Any:
        return compute_anew(recipe, compute)

    def reply(self, talk: Conversation) -> str:
        return self.says(talk.turns[-1].text)

    def sample(self, talks: Sequence[Conversation], _sampling: Sampling) -> list[SampledReply]:
        """Replies of one id and one nat a word; its base says something plain."""
        texts = [self.reply(talk) if self.is_itself else PLAIN for talk in talks]
        ids = [tuple(hash(word) for word in text.split()) for text in texts]
        return [
            SampledReply(text, own, np.ones(len(own))) for text, own in zip(texts, ids, strict=True)
        ]

    def read(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Two nats for every word but the first."""
        return [np.full(len(text.split()) - 1, 2.0) for text in texts]

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.is_itself = False
        yield
        self.is_itself = True


class Speaker(Scripted):
    """Replies by a function of the whole conversation; finds all given answers alike."""

    def __init__(self, speaks: Callable[[Conversation], str]) -> None:
        super().__init__(uniform)
        self.speaks = speaks
        self.opened: list[int] = []

    def open(self, rows: int) -> ScriptedDialogues:
        self.opened.append(rows)
        return super().open(rows)

    def reply(self, talk: Conversation) -> str:
        return self.speaks(talk)


class ScriptedDialogues:
    """Dialogues in which every question is put to the whole conversation so far."""

    def __init__(self, subject: Scripted, rows: int) -> None:
        self.subject = subject
        self.talks = [Conversation(())] * rows

    def say(self, messages: Sequence[str], _max_new_tokens: int) -> list[str]:
        asked = [
            Conversation((*talk.turns, Turn("user", text)))
            for talk, text in zip(self.talks, messages, strict=True)
        ]
        replies = [self.subject.reply(talk) for talk in asked]
        self.talks = [
            Conversation((*talk.turns, Turn("assistant", reply)))
            for talk, reply in zip(asked, replies, strict=True)
        ]
        return replies

    def split(self, rows: Sequence[int]) -> ScriptedDialogues:
        other = ScriptedDialogues(self.subject, len(rows))
        other.talks = [self.talks[row] for row in rows]
        return other

    def ask_aside(
        self, questions: Sequence[Sequence[str]], answers: Sequence[str], opening: str
    ) -> list[list[list[Score]]]:
        return [
            self.subject.score(
                [Conversation((*talk.turns, Turn("user", text))) for text in own],
                [answers] * len(own),
                opening,
            )
            for talk, own in zip(self.talks, questions, strict=True)
        ]


def uniform(_text: str, _answer: str, _answers: Sequence[str]) -> float:
    """Every answer alike."""
    return 0.0


def copier(text: str, answer: str, answers: Sequence[str]) -> float:
    """Five nats for whichever answer was named last, whoever named it."""
    places = [text.rfind(own) for own in answers]
    return 5.0 if max(places) >= 0 and text.rfind(answer) == max(places) else 0.0


def agrees(text: str, answer: str, answers: Sequence[str]) -> float:
    """Knows the first answer by two nats, and gives five for what the user asserts."""
    return 2.0 * (answer == answers[0]) + 5.0 * (f"I think the answer is {answer}," in text)


def knows(_text: str, answer: str, answers: Sequence[str]) -> float:
    """Two nats for the first answer, whatever the user says."""
    return 2.0 * (answer == answers[0])
