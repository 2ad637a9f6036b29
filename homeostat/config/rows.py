"""The reader of every JSONL file: a user's, one that comes with the package, or one of a run.

Text is UTF-8, with or without a byte-order mark. A line ends at a line feed alone, since the other
characters at which Python splits may stand inside a JSON string; a carriage return before it is
white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from homeostat.errors import HomeostatError
from homeostat.files import AGAIN, damaged

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_rows(
    source: str | Path | Traversable,
    name: str | None = None,
    needs: str = "give a JSONL file, one object a line",
) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with the numbers of their lines, from 1; blank lines count.

    Args:
        source: The file.
        name: What an error calls it; None = its path.
        needs: What is to be given where there is no such file, to end an error's sentence.

    Raises:
        HomeostatError: It cannot be read, is not UTF-8, or a line is no JSON object; says which.
    """
    name = str(source) if name is None else name
    return list(numbered_rows(decoded(read_bytes(source, name, needs), name), name))


def kept_rows(path: Path, mend: str = AGAIN) -> list[dict[str, Any]]:
    """The objects of a JSONL file that a run has written.

    Args:
        path: Of the file.
        mend: What to do if it is damaged, for the error.

    Raises:
        HomeostatError: A row is cut off or damaged.
    """
    try:
        return [row for _, row in read_rows(path)]
    except HomeostatError as error:
        raise damaged(path, error, mend) from error


def read_bytes(source: str | Path | Traversable, name: str, needs: str) -> bytes:
    """What a file holds; arguments as in `read_rows`.

    Raises:
        HomeostatError: It cannot be read; says why.
    """
    file = Path(source).expanduser() if isinstance(source, str | Path) else source
    try:
        return file.read_bytes()
    except OSError as error:
        raise HomeostatError(f"{name} cannot be read ({error.strerror}); {needs}.") from error


def decoded(raw: bytes, name: str) -> str:
    """Bytes as text, without a byte-order mark.

    Raises:
        HomeostatError: They are not UTF-8; says in which line.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise HomeostatError(
            f"{name}, line {number} is not UTF-8 text (byte 0x{raw[error.start]:02x}); save the "
            "file as UTF-8."
        ) from error


def numbered_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered objects of a text of JSON lines; errors as in `read_rows`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = parsed(line, where := f"{name}, line {number}")
            if not isinstance(row, dict):
                raise HomeostatError(f"{where} is no object with keys, such as {{...}}.")
            yield number, row


def parsed(text: str, where: str) -> Any:
    """What a JSON text says.

    Raises:
        HomeostatError: It is not JSON, or a string in it is no text; begins with ``where``.
    """
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise HomeostatError(
            f"{where} has half a character (a lone surrogate); mend it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise HomeostatError(f"{where} is not JSON: {error}.") from error
    return value
