"""What an evaluation has come to so far: a line of a file for every batch that is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from homeostat.files import write_text
from homeostat.models.cache import keep


class Parts:
    """Keeps each part as soon as it is there, so that an evaluation that is killed loses one.

    Two processes that measure the same may add to one file; a part that is there twice is the same
    twice.
    """

    def __init__(self, path: Path) -> None:
        """The parts of an earlier process, if it was killed.

        Args:
            path: Of the file; absent before the first part.
        """
        self.path = path
        self._kept: dict[str, Any] = {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        for line in lines:
            try:
                key, result = json.loads(line)
            except ValueError:
                continue  # whoever wrote this line was killed meanwhile
            self._kept[key] = result
        if lines:
            whole = "".join(_line(*part) for part in self._kept.items())
            keep(path, lambda entry: write_text(entry, whole))

    def __call__(self, recipe: Any, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, as JSON, or what the same recipe came to before."""
        text = json.dumps(recipe, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._kept:
            line = _line(key, compute())
            keep(self.path, lambda entry: _append(entry, line))
            self._kept[key] = json.loads(line)[1]
        return self._kept[key]

    def remove(self) -> None:
        """Remove the file, since the whole is kept elsewhere; a cache to be read alone stays."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _append(path: Path, line: str) -> None:
    with path.open("ab", buffering=0) as stream:
        stream.write(line.encode("utf-8"))


def _line(key: str, result: Any) -> str:
    return json.dumps([key, result]) + "\n"
