"""Labelled user utterances that the affect probes are fitted on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.errors import HomeostatError
from homeostat.types import Conversation, Turn

PACKAGED = "affect_corpus.jsonl"


@dataclass(frozen=True)
class Utterance:
    """One labelled user message.

    Attributes:
        conversation: The message, after what it answers if it is a reply.
        group: Who wrote it; rows of one group are never split.
        labels: Affect to 1 or 0; for sentiment 1 is positive, 0 is negative, absent is neither.
    """

    conversation: Conversation
    group: str
    labels: dict[str, int]


@dataclass(frozen=True)
class Corpus:
    """Labelled utterances and the digest of the file that they came from."""

    utterances: tuple[Utterance, ...]
    digest: str
    source: str

    @property
    def groups(self) -> np.ndarray:
        """Group of every utterance."""
        return np.array([u.group for u in self.utterances])


def load_corpus(path: str | None, affects: list[str], author_groups: int | None = None) -> Corpus:
    """A corpus of JSON lines with ``text``, ``group`` and label columns; None = the packaged one.

    Label columns are named like the affects: 0 or 1, and ``pos``, ``neg`` or anything else for
    sentiment. ``context`` may hold the turns before the utterance, user first, alternating.

    Args:
        path: The file.
        affects: Affects that must be labelled.
        author_groups: Keep only this many groups, evenly spread over the file.

    Raises:
        HomeostatError: The file cannot be read, a row lacks a column, there are no groups, or an
            affect has only one class.
    """
    source = resources.files("homeostat.data").joinpath(PACKAGED) if path is None else Path(path)
    try:
        raw = source.read_bytes()
    except OSError as error:
        raise HomeostatError(
            f"signals.affect.corpus={path} cannot be read ({error.strerror}); give a JSONL file."
        ) from error
    name = PACKAGED if path is None else str(path)
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise HomeostatError(f"{name} is not UTF-8 text ({error}); save it as UTF-8.") from error
    utterances = [
        _utterance(line, number, name, affects)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    utterances = _keep_groups(utterances, author_groups)
    _require_both_classes(utterances, affects, name)
    digest = hashlib.sha256(raw).hexdigest()
    return Corpus(tuple(utterances), f"{digest}:{author_groups}", name)


def _utterance(line: str, number: int, source: str, affects: list[str]) -> Utterance:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise HomeostatError(f"{source}, line {number} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise HomeostatError(f"{source}, line {number} is {row!r}; it must be a JSON object.")
    missing = [key for key in ("text", "group", *affects) if key not in row]
    if missing:
        raise HomeostatError(
            f"{source}, line {number} has no {', '.join(missing)}; every row needs text, group "
            "(its author, so that no author is both fitted and tested) and a label per affect."
        )
    labels = {}
    for affect in affects:
        if affect == "sentiment":
            if row[affect] in ("pos", "neg"):
                labels[affect] = int(row[affect] == "pos")
        elif row[affect] in (0, 1):
            labels[affect] = int(row[affect])
        else:
            raise HomeostatError(
                f"{source}, line {number} has {affect}={row[affect]!r}; a label must be 0 or 1."
            )
    context = row.get("context", ())
    if len(context) % 2:
        raise HomeostatError(
            f"{source}, line {number} has {len(context)} context turns; they must alternate user, "
            "assistant, and end with the assistant."
        )
    before = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(context)]
    conversation = Conversation((*before, Turn("user", str(row["text"]))))
    return Utterance(conversation, str(row["group"]), labels)


def _keep_groups(utterances: list[Utterance], count: int | None) -> list[Utterance]:
    groups = list(dict.fromkeys(u.group for u in utterances))
    if count is None or count >= len(groups):
        return utterances
    kept = {groups[i * len(groups) // count] for i in range(count)}
    return [u for u in utterances if u.group in kept]


def _require_both_classes(utterances: list[Utterance], affects: list[str], source: str) -> None:
    groups = {u.group for u in utterances}
    if len(groups) < 10:
        raise HomeostatError(
            f"{source} has {len(groups)} groups; at least 10 are needed to keep the authors of the "
            "training, validation and test rows apart."
        )
    for affect in affects:
        classes = {u.labels[affect] for u in utterances if affect in u.labels}
        if len(classes) < 2:
            found = ", ".join(map(str, sorted(classes))) or "none"
            raise HomeostatError(
                f"{source} has only one class of {affect} ({found}); a probe needs both. Add rows, "
                f"or leave the affect out with signals.affect.names."
            )
