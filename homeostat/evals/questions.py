"""Questions with a right answer and a wrong one, which several evaluations ask."""

from __future__ import annotations

from homeostat.evals.items import Item, Sides

PACKAGED = "facts.jsonl"
COLUMNS: dict[str, type] = {"question": str, "right": str, "wrong": str}


def question_sides(item: Item) -> Sides:
    """The right answer to a question and the wrong one."""
    return Sides(item["question"], item["right"], [item["wrong"]])
