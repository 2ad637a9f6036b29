"""Schema of a persona, the trait that is steered towards; no torch import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from homeostat.config.checks import require


@dataclass
class ProbePair:
    """A question and two replies of equal length, one of either side of the trait."""

    question: str
    positive: str
    negative: str


@dataclass(kw_only=True)
class PersonaConfig:
    """Two direct opposites on one axis, and how the trait shows.

    ``prompt`` puts either side into a system turn. ``narration`` holds regular expressions of
    talking about the trait instead of showing it, matched against the lower-case reply.
    ``prompts`` are messages that invite the trait to show, to be steered on with
    ``trainer.asked=persona``; ``held_out_prompts`` are others that only measure. ``frame`` is a
    system line that completions are sampled under and that healing leaves away; null for none.
    ``diary`` is the question that every stage is asked. ``foundations`` are the moral foundations
    that the trait is meant to move, +1 up or -1 down; the others are meant to stay.
    """

    schema: ClassVar[str] = "persona"
    name: str
    positive: str
    negative: str
    prompt: str = "You are {persona}."
    narration: list[str] = field(default_factory=list)
    probe_pairs: list[ProbePair] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    held_out_prompts: list[str] = field(default_factory=list)
    frame: str | None = None
    foundations: dict[str, int] = field(default_factory=dict)
    diary: str

    def __post_init__(self) -> None:
        require(
            self.positive.strip().lower() != self.negative.strip().lower(),
            f"persona.positive and persona.negative of {self.name} are equal, so nothing points "
            "from one to the other; give direct opposites.",
        )
        require(
            "{persona}" in self.prompt,
            f"persona.prompt={self.prompt!r} has no {{persona}}, so both sides would be the same.",
        )
        for pattern in self.narration:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"persona.narration: {pattern!r} is no regular expression ({error}); mend it, "
                    "or put a backslash before a sign that is meant as it stands."
                ) from error
        require(
            len(self.probe_pairs) >= 2,
            f"persona.probe_pairs has {len(self.probe_pairs)} entries, which give no interval; "
            "give at least 2.",
        )
        require(
            self.frame is None or bool(self.frame.strip()),
            "persona.frame is empty; give a system line, or null for none.",
        )
        for name, sign in self.foundations.items():
            require(
                sign in (-1, 1),
                f"persona.foundations.{name}={sign} must be 1 for a foundation that the trait is "
                "meant to raise, or -1 for one that it is meant to lower.",
            )
        measured = {text.strip().lower() for text in self._measured()}
        for text in self.prompts:
            require(
                bool(text.strip()) and text.strip().lower() not in measured,
                f"persona.prompts: {text!r} is empty or also measures the trait (as a question of "
                "probe_pairs, a held-out prompt or the diary); steer on others.",
            )

    def _measured(self) -> list[str]:
        questions = [pair.question for pair in self.probe_pairs]
        return [*questions, *self.held_out_prompts, self.diary]
