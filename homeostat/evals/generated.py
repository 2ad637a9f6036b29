"""Figures from what the model itself says: ``eval.mode=generate``.

Conditions, controls and names of figures are those of the other mode, so that both are compared and
reported alike. Here every part of a figure is 0 or 1, what a greedy reply says, read by string
(`matching`) or by a lexicon of praise and blame; no judge, and no probe of the reward. A reply that
cannot be read is missing, and so is every figure that it is part of; ``unscorable`` is the share of
an item's replies that were missing.

Source: SycophancyEval (Sharma et al. 2023, arXiv 2310.13548). **Differs:** string matching instead
of a judge; controls for copying.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from homeostat.config.evals import GENERATE
from homeostat.evals.caveats import Row
from homeostat.evals.items import Item
from homeostat.evals.subject import Subject

Cell = TypeVar("Cell", bound=Hashable)

ROWS = 32  # dialogues that share a cache
SIDE = {"right": 1.0, "wrong": 0.0}  # of a reply that names one answer only


def missing(parts: Sequence[float | None]) -> float:
    """Share of the parts that are missing."""
    return sum(part is None for part in parts) / len(parts)


def less(a: float | None, b: float | None) -> float | None:
    """The difference of two figures; missing if one is."""
    return None if a is None or b is None else a - b


def converse(
    subject: Subject, scripts: Mapping[Cell, Sequence[str]], tokens: int
) -> dict[Cell, list[str]]:
    """The subject's replies to each script of user messages, its own replies fed back.

    Args:
        subject: Who replies.
        scripts: Equally many messages in each; conditions of an item should stand side by side.
        tokens: Greatest length of a reply.
    """
    keys = list(scripts)
    replies: dict[Cell, list[str]] = {}
    for start in range(0, len(keys), ROWS):
        part = keys[start : start + ROWS]
        texts = [tuple(scripts[key]) for key in part]
        said = subject.keep(
            ["converse", texts, tokens],
            partial(_side_by_side, subject, texts, tokens),
        )
        replies |= dict(zip(part, said, strict=True))
    return replies


def _side_by_side(
    subject: Subject, scripts: Sequence[tuple[str, ...]], tokens: int
) -> list[list[str]]:
    """Replies to each script; scripts that have been the same so far are one dialogue still."""
    replies: list[list[str]] = [[] for _ in scripts]
    so_far = list(dict.fromkeys(script[:1] for script in scripts))
    dialogues = subject.open(len(so_far))
    for turn in range(len(scripts[0])):
        if turn:
            before = so_far
            so_far = list(dict.fromkeys(script[: turn + 1] for script in scripts))
            dialogues = dialogues.split([before.index(script[:-1]) for script in so_far])
        said = dialogues.say([script[-1] for script in so_far], tokens)
        by_script = dict(zip(so_far, said, strict=True))
        for script, turns in zip(scripts, replies, strict=True):
            turns.append(by_script[script[: turn + 1]])
    return replies


def first_replies(
    subject: Subject, items: Sequence[Item], conditions: Mapping[str, str], tokens: int
) -> list[tuple[Item, dict[str, str]]]:
    """Of each item the first reply under every condition."""
    said = converse(
        subject,
        {(i["id"], name): [text.format(**i)] for i in items for name, text in conditions.items()},
        tokens,
    )
    return [(i, {name: said[i["id"], name][0] for name in conditions}) for i in items]


def reply_row(
    item: Item, replies: Mapping[str, Any], parts: Sequence[float | None], **figures: Any
) -> Row:
    """The row of an item whose figures are read from some replies.

    Args:
        item: Of which the row is.
        replies: By condition.
        parts: What was read from each; missing is None.
        **figures: That follow from the parts.
    """
    base = {"item": item["id"], "mode": GENERATE, "unscorable": missing(parts)}
    return base | figures | {"replies": dict(replies)}
