"""The folder that keeps what is expensive to make again: de-quantised weights, fitted probes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from homeostat.errors import HomeostatError


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
