"""GoEmotions from the hub, in the columns of a probe corpus.

Source: Demszky et al. 2020 (arXiv 2005.00547); the sentiment of its emotions is that of the
paper's Figure 1. **Differs:** frustration has no label of its own there; annoyance, anger or
disappointment stand for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from homeostat.errors import HomeostatError

POSITIVE = frozenset(
    [
        "admiration",
        "amusement",
        "approval",
        "caring",
        "desire",
        "excitement",
        "gratitude",
        "joy",
        "love",
        "optimism",
        "pride",
        "relief",
    ]
)
NEGATIVE = frozenset(
    [
        "anger",
        "annoyance",
        "disappointment",
        "disapproval",
        "disgust",
        "embarrassment",
        "fear",
        "grief",
        "nervousness",
        "remorse",
        "sadness",
    ]
)
FRUSTRATION = frozenset({"annoyance", "anger", "disappointment"})
CONFIG = "simplified"


def is_hub_id(path: str) -> bool:
    """Whether ``path`` has the form ``owner/name`` or ``owner/name:split`` of a hub dataset."""
    return re.fullmatch(
        r"[\w-][\w.-]*/[\w-][\w-]*(\.[\w-]+)*(:\w+)?", path
    ) is not None and not path.lower().endswith((".jsonl", ".json", ".csv"))


def fetch_goemotions(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a split of the hub's GoEmotions; ``owner/name`` alone is the train split.

    Raises:
        HomeostatError: The hub cannot be reached, or the dataset has not GoEmotions' columns.
    """
    from datasets import load_dataset

    name, _, split = path.partition(":")
    try:
        dataset = load_dataset(name, CONFIG, split=split or "train")
        dataset = dataset.select_columns(["id", "text", "labels"])
        emotions = dataset.features["labels"].feature.names
    except Exception as error:  # every way of failing to fetch comes as a class of its own
        raise HomeostatError(
            f"the corpus {path} is no file here and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'})"
            "; connect, or give a JSONL or CSV file. Of hub datasets only GoEmotions is understood."
        ) from error
    for row in dataset:
        yield label_row(row["id"], row["text"], [emotions[i] for i in row["labels"]])


def label_row(identity: str, text: str, emotions: Sequence[str]) -> dict[str, Any]:
    """One comment with the affects that its emotions stand for."""
    named = set(emotions)
    return {
        "id": identity,
        "text": text,
        "sentiment": _sentiment(named),
        "curiosity": int("curiosity" in named),
        "confusion": int("confusion" in named),
        "frustration": int(bool(named & FRUSTRATION)),
    }


def _sentiment(emotions: set[str]) -> str:
    positive, negative = bool(emotions & POSITIVE), bool(emotions & NEGATIVE)
    if positive or negative:
        return "mixed" if positive and negative else "pos" if positive else "neg"
    return "neutral" if emotions == {"neutral"} else "ambiguous"
