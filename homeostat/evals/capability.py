"""Does the model still know what it knew? Multiple choice, by log-probability of the answers.

Source: scoring by characters as in the ARC and OpenBookQA tasks of EleutherAI's harness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat.config.evals import EvalConfig
from homeostat.evals.caveats import Row, at_chance
from homeostat.evals.evaluation import Evaluation, Reading
from homeostat.evals.given import user
from homeostat.evals.items import Item, Sides
from homeostat.evals.subject import Subject


def chosen_rows(subject: Subject, items: Sequence[Item], _settings: EvalConfig) -> list[Row]:
    """One row per question.

    A choice's score is its log-probability per character, so that a long one is not worse for its
    length. A row has ``right`` (0 or 1, the best choice is the gold one), ``chance`` (1 / number of
    choices) and ``margin``, the gold choice's score less the best other one's, nats per character.

    Args:
        subject: Who is asked.
        items: With ``question``, ``choices`` and the index ``gold``.
    """
    talks = [user(item["question"]) for item in items]
    scores_by_item = subject.score(talks, [item["choices"] for item in items])
    rows = []
    for item, scores in zip(items, scores_by_item, strict=True):
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


def choices_flaw(item: Item) -> str | None:
    """Why there is nothing to choose, or no choice is right; None where neither is so."""
    gold, choices = item["gold"], item["choices"]
    if not all(isinstance(text, str) and text for text in choices):
        return f"choices={choices} must be texts, none of them empty"
    if not 0 <= gold < len(choices) or len(choices) < 2:
        return (
            f"gold={gold} is no index of its {len(choices)} choices, of which there must be at "
            "least 2"
        )
    return None


def choice_sides(item: Item) -> Sides:
    """The gold choice and the others."""
    others = [text for i, text in enumerate(item["choices"]) if i != item["gold"]]
    return Sides(item["question"], item["choices"][item["gold"]], others)


def chance_caveat(rows: Sequence[Row]) -> list[str]:
    """A caveat where no more is right than by chance."""
    chance = float(np.mean([row["chance"] for row in rows]))
    return at_chance([row["right"] for row in rows], chance)


EVALUATION = Evaluation(
    name="capability",
    packaged="capability.jsonl",
    columns={"question": str, "choices": list, "gold": int},
    claim="right",
    given=Reading(chosen_rows, ("margin",)),
    good=1,
    caveats=chance_caveat,
    flaw=choices_flaw,
    sides=choice_sides,
)
