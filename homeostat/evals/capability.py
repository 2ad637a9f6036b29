"""Does the model still know what it knew? Multiple choice, by log-probability of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from homeostat.errors import HomeostatError
from homeostat.evals.items import Item
from homeostat.evals.subject import Subject
from homeostat.types import Conversation, Turn


def capability(subject: Subject, items: Sequence[Item]) -> list[dict[str, Any]]:
    """One row per question.

    A choice's score is its log-probability per character, so that a long one is not worse for its
    length. A row has ``right`` (0 or 1, the best choice is the gold one), ``chance`` (1 / number of
    choices) and ``margin``, the gold choice's score less the best other one's, nats per character.

    Args:
        subject: Who is asked.
        items: With ``question``, ``choices`` and the index ``gold``.

    Raises:
        HomeostatError: An item's gold is no index of its choices.

    Source: scoring by characters as in the ARC and OpenBookQA tasks of EleutherAI's harness.
    """
    for item in items:
        if not 0 <= item["gold"] < len(item["choices"]) or len(item["choices"]) < 2:
            raise HomeostatError(
                f"item {item['id']}: gold={item['gold']} is no index of its "
                f"{len(item['choices'])} choices, of which there must be at least 2."
            )
    talks = [Conversation((Turn("user", item["question"]),)) for item in items]
    found = subject.score(talks, [item["choices"] for item in items])
    rows = []
    for item, scores in zip(items, found, strict=True):
        pairs = zip(scores, item["choices"], strict=True)
        per_character = np.array([score.total / len(text) for score, text in pairs])
        gold = item["gold"]
        rows.append(
            {
                "item": item["id"],
                "right": float(per_character.argmax() == gold),
                "chance": 1 / len(item["choices"]),
                "margin": float(per_character[gold] - np.delete(per_character, gold).max()),
            }
        )
    return rows
