"""The folder that keeps what is expensive to make again: de-quantised weights, fitted probes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import platformdirs

from homeostat.errors import HomeostatError
from homeostat.files import write_text


def cache_folder(*parts: str) -> Path:
    """A folder below ``HOMEOSTAT_CACHE``, else below the user's cache folder; made if absent.

    Raises:
        HomeostatError: The folder cannot be made.
    """
    root = os.environ.get("HOMEOSTAT_CACHE") or platformdirs.user_cache_dir("homeostat")
    folder = Path(root).expanduser().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HomeostatError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set HOMEOSTAT_CACHE to "
            "a folder that you may write to."
        ) from error
    return folder


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Hex SHA-256 of this package's sources: results of other code are never taken for ours."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def remembered(kind: str, recipe: Any, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns, as JSON: from the cache where recipe and code are the same.

    Args:
        kind: Folder of the cache.
        recipe: Everything that the result follows from, JSON-ready.
        compute: Returns something JSON-ready.
    """
    text = json.dumps([code_digest(), recipe], sort_keys=True, default=str)
    path = cache_folder(kind) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found = compute()
    write_text(path, json.dumps(found))
    return json.loads(json.dumps(found))
