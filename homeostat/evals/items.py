"""Items of the evaluations: packaged, or from a user's file of the same shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from homeostat.errors import HomeostatError

Item = dict[str, Any]


def read_items(path: str | None, packaged: str | None, required: Mapping[str, type]) -> list[Item]:
    """Rows of a JSONL file, checked.

    Args:
        path: A user's file; None = the packaged one.
        packaged: Name of the packaged file; None = there is none.
        required: Keys that every row must have, and their types. A row without an ``id`` is
            called after its line.

    Raises:
        HomeostatError: There is no such file, or a row lacks something; says which line.
    """
    if path is None and packaged is None:
        raise HomeostatError(
            f"this evaluation has no packaged items; give a JSONL file with {', '.join(required)} "
            "by eval.files."
        )
    source: Traversable | Path = files("homeostat") / "data" / str(packaged)
    if path is not None:
        source = Path(path).expanduser()
        if not source.is_file():
            raise HomeostatError(f"{path}: there is no such file; give a JSONL file of items.")
    rows: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = _checked(line, f"{path or packaged}, line {number}", required, number)
            before = lines.setdefault(str(row["id"]), number)
            if before != number:
                raise HomeostatError(
                    f"{path or packaged}, line {number}: id {row['id']!r} is that of line "
                    f"{before}; give every item an id of its own."
                )
            rows.append(row)
    if not rows:
        raise HomeostatError(f"{path or packaged} holds no items.")
    return rows


def _checked(line: str, where: str, required: Mapping[str, type], number: int) -> Item:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise HomeostatError(f"{where} is not JSON ({error.msg}).") from error
    if not isinstance(row, dict):
        raise HomeostatError(f"{where} is no object with keys.")
    for key, kind in required.items():
        if not isinstance(row.get(key), kind):
            given = "is missing" if key not in row else f"is {row[key]!r}"
            raise HomeostatError(f"{where}: {key} {given}; it must be a {kind.__name__}.")
        if not row[key] and row[key] != 0:
            raise HomeostatError(f"{where}: {key} is empty.")
    return {"id": str(number)} | row


def spread_items(items: Sequence[Item], count: int | None) -> list[Item]:
    """So many items, evenly from the whole list; all of them for None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
