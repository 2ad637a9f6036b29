"""Labelled user utterances that the affect probes are fitted on and tested with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from homeostat.config.rows import decoded, numbered_rows, parsed, read_bytes
from homeostat.errors import HomeostatError
from homeostat.signals.probing.goemotions import fetch_goemotions, is_hub_id
from homeostat.types import Conversation, Turn

PACKAGED = "affect_corpus.jsonl"  # authors, with the affects that each message shows
GRADED = "affect_users.jsonl"  # simulated users, with how much of each affect a message shows
NEITHER, UNLABELLED = -1, -2
SENTIMENT = {
    "pos": 1,
    "positive": 1,
    "neg": 0,
    "negative": 0,
    "neutral": NEITHER,
    "ambiguous": UNLABELLED,
    "mixed": UNLABELLED,
}
BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
MIN_GROUPS = 10


@dataclass(frozen=True)
class Utterance:
    """One labelled user message.

    Attributes:
        conversation: The message, after what it answers if it is a reply.
        group: Who wrote it; rows of one group are never split.
        labels: Affect to 1 or 0; sentiment is 1 positive, 0 negative, `NEITHER` neutral. An affect
            that nobody labelled is absent.
        levels: Affect to how much of it the message shows, in the affect's own unit (sentiment
            -1..1, others 0..1), where that was graded.
    """

    conversation: Conversation
    group: str
    labels: dict[str, int]
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The message itself."""
        return self.conversation.turns[-1].text


@dataclass(frozen=True)
class Corpus:
    """Labelled utterances and where they came from.

    Attributes:
        utterances: In the order of the file.
        digest: Changes when the content does.
        source: The file or hub id, as the user named it.
        notices: What was left out, in sentences.
    """

    utterances: tuple[Utterance, ...]
    digest: str
    source: str
    notices: tuple[str, ...] = ()

    @property
    def groups(self) -> np.ndarray:
        """Group of every utterance."""
        return np.array([u.group for u in self.utterances])

    @property
    def texts(self) -> list[str]:
        """The messages."""
        return [u.text for u in self.utterances]

    @property
    def affects(self) -> tuple[str, ...]:
        """Affects with both classes, in the order of their first label."""
        classes_of: dict[str, set[int]] = {}
        for utterance in self.utterances:
            for affect, label in utterance.labels.items():
                classes_of.setdefault(affect, set()).add(label)
        return tuple(affect for affect, classes in classes_of.items() if {0, 1} <= classes)

    def labels(self, affect: str) -> Int[np.ndarray, " U"]:
        """1, 0, `NEITHER` or `UNLABELLED` for every utterance."""
        return np.array([u.labels.get(affect, UNLABELLED) for u in self.utterances])

    def targets(self, affect: str) -> Float[np.ndarray, " U"]:
        """What a probe is to put out for every utterance, 0..1, or `NEITHER`; NaN for no label.

        A level counts as itself, brought to 0..1; a class as 0 or 1.
        """
        label = self.labels(affect)
        target = np.where(label == UNLABELLED, np.nan, label)
        for row, utterance in enumerate(self.utterances):
            if (level := utterance.levels.get(affect)) is not None:
                target[row] = (level + 1) / 2 if affect == "sentiment" else level
        return target


def load_corpus(
    path: str | None, affects: Sequence[str], author_groups: int | None = None
) -> Corpus:
    """The packaged corpora (None), a JSONL or CSV file, or GoEmotions by its hub id.

    A row has ``text`` and a column per labelled affect: 0 or 1, and ``pos``, ``neg``, ``neutral``,
    ``ambiguous`` or ``mixed`` for sentiment; an empty label means that nobody judged the row.
    ``<affect>_level`` is a number instead of a class: how much of it the message shows, sentiment
    -1..1, others 0..1. Probes are fitted on both; their AUROC is that of the classes.
    ``group`` (else ``id``, else the row) says which rows are one author's. ``context`` may hold the
    turns before the utterance, user first, alternating (a JSON list; in CSV, written as JSON).

    Args:
        path: The file or hub id.
        affects: Affects of interest; one without both classes is left out, with a notice.
        author_groups: How many authors of the packaged corpus to keep, evenly spread, and the same
            share of its simulated users; None = all. A corpus of the user's own is always used
            whole.

    Raises:
        HomeostatError: It cannot be read, a row is not what it must be, there are too few groups,
            or no affect has both classes.
    """
    name, rows, digest = _read_rows(path)
    utterances = [_utterance(row, number, name, affects) for number, row in rows]
    if path is None:
        _, rows, of_users = _read_rows(GRADED, packaged=True)
        users = [_utterance(row, number, GRADED, affects) for number, row in rows]
        digest = f"{digest}:{of_users}"
        if author_groups is not None:
            share = author_groups / len({u.group for u in utterances})
            utterances = _keep_groups(utterances, author_groups)
            users = _keep_groups(users, round(share * len({u.group for u in users})))
            digest = f"{digest}:{author_groups}"
        utterances += users
    corpus = Corpus(tuple(utterances), digest, name)
    if len(groups := set(corpus.groups)) < MIN_GROUPS:
        raise HomeostatError(
            f"{name} has {len(groups)} groups; at least {MIN_GROUPS} are needed to keep the "
            "authors of the training, validation and test rows apart."
        )
    missing = [affect for affect in affects if affect not in corpus.affects]
    if len(missing) == len(affects):
        raise HomeostatError(
            f"{name} has no affect with both classes among {', '.join(affects)}; add a label "
            "column, or choose others with signals.affect.names."
        )
    notices = tuple(
        f"{name} has no {affect} with both classes; no probe of {affect} is fitted or tested on it."
        for affect in missing
    )
    return Corpus(corpus.utterances, digest, name, notices)


def _read_rows(
    path: str | None, packaged: bool = False
) -> tuple[str, list[tuple[int, Mapping[str, Any]]], str]:
    """Name, numbered rows and digest of what ``path`` stands for."""
    name = PACKAGED if path is None else str(path)
    packaged = packaged or path is None
    if path is not None and not packaged and is_hub_id(path) and not Path(path).exists():
        fetched = list(fetch_goemotions(path))
        digest = hashlib.sha256(json.dumps(fetched).encode()).hexdigest()
        return name, list(enumerate(fetched, start=1)), digest
    source = resources.files("homeostat.data").joinpath(name) if packaged else Path(name)
    raw = read_bytes(
        source,
        f"the corpus {name}",
        "give a JSONL or CSV file with text and label columns, or the hub id of GoEmotions",
    )
    text = decoded(raw, name)
    rows = _csv_rows(text, name) if name.lower().endswith(".csv") else numbered_rows(text, name)
    return name, list(rows), hashlib.sha256(raw).hexdigest()


def _csv_rows(text: str, source: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise HomeostatError(f"{source}, line {reader.line_num} is not CSV: {error}.") from error
    for number, row in rows:
        filled = {key: value for key, value in row.items() if value not in ("", None)}
        if context := filled.get("context"):
            filled["context"] = parsed(context, f"{source}, line {number}: its context")
        yield number, filled


def _utterance(
    row: Mapping[str, Any], number: int, source: str, affects: Sequence[str]
) -> Utterance:
    where = f"{source}, line {number}"
    if not isinstance(row.get("text"), str) or not row["text"].strip():
        raise HomeostatError(f"{where} has no text; every row needs the message in column text.")
    labels, levels = {}, {}
    for affect in affects:
        if (level := row.get(f"{affect}_level")) not in (None, ""):
            levels[affect] = _level(level, affect, where)
        value = row.get(affect)
        if value is None or value == "":
            continue
        allowed = SENTIMENT if affect == "sentiment" else BINARY
        label = allowed.get(str(value).strip().lower())
        if label is None:
            raise HomeostatError(
                f"{where} has {affect}={value!r}; it must be one of {', '.join(allowed)}, or empty."
            )
        if label != UNLABELLED:
            labels[affect] = label
    context = row.get("context") or ()
    if (
        not isinstance(context, list | tuple)
        or not all(isinstance(said, str) for said in context)
        or len(context) % 2
    ):
        raise HomeostatError(
            f"{where} has context={context!r}; it must be a list of texts that alternate user, "
            "assistant, and end with the assistant."
        )
    before = [Turn("user" if i % 2 == 0 else "assistant", said) for i, said in enumerate(context)]
    group = next((str(row[key]) for key in ("group", "id") if row.get(key) not in (None, "")), None)
    conversation = Conversation((*before, Turn("user", row["text"])))
    return Utterance(conversation, f"row {number}" if group is None else group, labels, levels)


def _level(value: Any, affect: str, where: str) -> float:
    lowest = -1.0 if affect == "sentiment" else 0.0
    try:
        level = float(value)
    except (TypeError, ValueError):
        level = float("nan")
    if isinstance(value, bool) or not lowest <= level <= 1:
        raise HomeostatError(
            f"{where} has {affect}_level={value!r}; it must be a number from {lowest:g} to 1, or "
            "empty."
        )
    return level


def _keep_groups(utterances: list[Utterance], count: int) -> list[Utterance]:
    groups = list(dict.fromkeys(u.group for u in utterances))
    if count >= len(groups):
        return utterances
    kept = {groups[i * len(groups) // count] for i in range(count)}
    return [u for u in utterances if u.group in kept]
