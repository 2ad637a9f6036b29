"""Items of the evaluations: packaged, or from a user's file of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import ascii_uppercase
from typing import Any

from homeostat.config.rows import read_rows
from homeostat.errors import HomeostatError

Item = dict[str, Any]


@dataclass(frozen=True)
class Sides:
    """What an item asks, and the answers that it tells apart.

    Attributes:
        question: What is asked.
        right: The answer that counts as one side.
        others: Those that count as the other.
    """

    question: str
    right: str
    others: Sequence[str]

    def flaw(self) -> str | None:
        """Why the item can measure nothing; None if it can."""
        answers = [_bare(text) for text in (self.right, *self.others)]
        twice = next((text for text in answers if answers.count(text) > 1), None)
        return None if twice is None else f"two of its answers are {twice!r}, so nothing tells them"

    def contradicts(self, other: Sides) -> bool:
        """Whether what is right here is wrong there, or the other way round."""
        return _bare(self.right) in map(_bare, other.others) or (
            _bare(other.right) in map(_bare, self.others)
        )


def _bare(text: str) -> str:
    return " ".join(text.split())


def no_flaw(_item: Item) -> None:
    """Any item that has its columns will do."""


def read_items(
    path: str | None,
    packaged: str | None,
    required: Mapping[str, type],
    flaw: Callable[[Item], str | None] = no_flaw,
    sides: Callable[[Item], Sides] | None = None,
    key: str = "eval.files",
) -> list[Item]:
    """Rows of a JSONL file, checked.

    Args:
        path: A user's file; None = the packaged one.
        packaged: Name of the packaged file; None = there is none.
        required: Keys that every row must have, and their types. A row without an ``id`` is
            called after its line.
        flaw: Why an item that has its columns cannot be used; None if it can.
        sides: What an item asks and tells apart; None = nothing that could contradict itself.
        key: Of the config, that names the file.

    Raises:
        HomeostatError: There is no such file, a row lacks something, or it can measure nothing;
            says which line.
    """
    if path is None and packaged is None:
        raise HomeostatError(
            f"{key} has no packaged items; give a JSONL file with {', '.join(required)}, by "
            f"{key}=<file>."
        )
    name = f"{key}={path}" if path else str(packaged)
    source = path or files("homeostat") / "data" / str(packaged)
    numbered = read_rows(source, name, "give a JSONL file of items")
    items = {n: _item(row, f"{name}, line {n}", required, n) for n, row in numbered}
    if not items:
        raise HomeostatError(f"{name} holds no items.")
    _refuse_same_ids(items, name)
    for number, item in items.items():
        if reason := flaw(item):
            raise HomeostatError(f"{name}, line {number}: {reason}.")
    if sides is not None:
        _refuse_contradictions({number: sides(item) for number, item in items.items()}, name)
    return list(items.values())


def _multiple_choice(row: Item, where: str, required: Mapping[str, type]) -> Item:
    """A row of multiple choice as Inspect writes it (input, choices, target), as an item of ours.

    Raises:
        HomeostatError: Its target is none of its choices.
    """
    if "gold" not in required or "input" not in row or "target" not in row:
        return row
    choices, target = row.get("choices") or [], row["target"]
    target = target[0] if isinstance(target, list) and len(target) == 1 else target
    names = [*choices, *ascii_uppercase[: len(choices)]]
    if target not in names:
        raise HomeostatError(
            f"{where}: target={target!r} is none of its {len(choices)} choices; give one of them, "
            "or its letter."
        )
    kept = {key: value for key, value in row.items() if key not in ("input", "target")}
    return kept | {"question": row["input"], "gold": names.index(target) % len(choices)}


def _item(row: Item, where: str, required: Mapping[str, type], number: int) -> Item:
    row = _multiple_choice(row, where, required)
    for key, kind in required.items():
        # A bool is an int to Python, and no number to whoever writes an index.
        if not isinstance(row.get(key), kind) or (kind is int and isinstance(row[key], bool)):
            given = "is missing" if key not in row else f"is {row[key]!r}"
            raise HomeostatError(f"{where}: {key} {given}; it must be a {kind.__name__}.")
        if not row[key] and row[key] != 0:
            raise HomeostatError(f"{where}: {key} is empty.")
    return {"id": str(number)} | row


def _refuse_same_ids(items: Mapping[int, Item], name: str) -> None:
    lines: dict[str, int] = {}
    for number, item in items.items():
        before = lines.setdefault(str(item["id"]), number)
        if before != number:
            raise HomeostatError(
                f"{name}, line {number}: id {item['id']!r} is that of line {before}; give every "
                "item an id of its own."
            )


def _refuse_contradictions(sides_by_line: Mapping[int, Sides], name: str) -> None:
    asked: dict[str, dict[int, Sides]] = {}
    for number, sides in sides_by_line.items():
        if reason := sides.flaw():
            raise HomeostatError(f"{name}, line {number}: {reason} apart.")
        for before, other in asked.get(_bare(sides.question), {}).items():
            if sides.contradicts(other):
                raise HomeostatError(
                    f"{name}, line {number} asks what line {before} asks, and what is right in one "
                    "is wrong in the other; keep one of them."
                )
        asked.setdefault(_bare(sides.question), {})[number] = sides


def spread_items(items: Sequence[Item], count: int | None) -> list[Item]:
    """So many items, evenly from the whole list; all of them for None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
