"""The diary of steer and heal as a page: one question, every stage, and what changed marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

BASE = "base"
STUDENT = ("base", "healed")  # the stages after which the student says what it has become
Part = tuple[str, bool]  # text, and whether it is new


@dataclass(frozen=True)
class Entry:
    """What one stage answered.

    Attributes:
        stage: Its name.
        parts: The answer in order; what is new to the student's last answer is marked.
        new: Share of its words that are new to that answer; None for the base and for no words.
    """

    stage: str
    parts: Sequence[Part]
    new: float | None


@dataclass(frozen=True)
class Chapter:
    """All that was answered in a round; 0 is before the first."""

    round: int
    entries: Sequence[Entry]


def read_diary(rows: Sequence[Mapping[str, Any]]) -> list[Chapter]:
    """The diary by round; every answer beside the student's last one before it.

    Args:
        rows: Of evals/diary.jsonl, in the order of the stages.
    """
    chapters: dict[int, list[Entry]] = {}
    last: str | None = None
    for row in rows:
        reply = str(row["reply"])
        entry = Entry(row["stage"], [(reply, False)] if reply else [], None)
        if last is not None and row["stage"] != BASE:
            entry = Entry(row["stage"], marked(last, reply), share_new(last, reply))
        chapters.setdefault(int(row["round"]), []).append(entry)
        if row["stage"] in STUDENT:
            last = reply
    return [Chapter(number, entries) for number, entries in chapters.items()]


def marked(before: str, after: str) -> list[Part]:
    """``after`` in parts: what the longest matching runs of words lack of ``before`` is new."""
    old, new = (re.findall(r"\s*\S+", text) for text in (before, after))
    before_words, words = ([word.strip().lower() for word in text] for text in (old, new))
    parts: list[Part] = []
    matcher = SequenceMatcher(None, before_words, words, autojunk=False)
    for kind, _, _, start, stop in matcher.get_opcodes():
        if start < stop:
            parts.append(("".join(new[start:stop]), kind != "equal"))
    return parts


def share_new(before: str, after: str) -> float | None:
    """Share of the words of ``after`` that are new; None without words."""
    counts = [(len(text.split()), is_new) for text, is_new in marked(before, after)]
    total = sum(count for count, _ in counts)
    return sum(count for count, is_new in counts if is_new) / total if total else None
