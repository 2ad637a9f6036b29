"""Files that are whole or absent: written beside their place, then renamed; and read back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from homeostat.errors import HomeostatError, out_of_disk


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Say which folder it was if the block fails because the disk is full.

    Raises:
        HomeostatError: In place of whatever the writer raised, libraries' own errors included.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, HomeostatError) or not out_of_disk(error):
            raise
        raise HomeostatError(
            f"{folder} is on a disk that is full (No space left on device, or a quota is used up); "
            "what was written whole is still there. Free some space, or choose another disk: "
            "hydra.run.dir=<folder> for runs, HOMEOSTAT_CACHE=<folder> for what they share."
        ) from error


# What to do about a damaged file of a run folder: one that a resumed run writes again, and others.
AGAIN = "delete it and summary.json of its run, and homeostat resume=<that run> writes both again"
LOST = "put a whole copy in its place, or start the run anew"


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block ends without an error.

    Raises:
        HomeostatError: The disk is full.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming_full_disk(path.parent):
            yield scratch
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with writing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def read_json(path: Path, mend: str = AGAIN) -> Any:
    """What a JSON file holds.

    Args:
        path: Of the file.
        mend: What to do if it is damaged, for the error.

    Raises:
        HomeostatError: It is cut off or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, mend) from error


def damaged(path: Path, error: Exception, mend: str) -> HomeostatError:
    """The error for a file that was whole once: its name, why it cannot be read, what to do."""
    why = " ".join(str(error).split())
    return HomeostatError(f"{path} is damaged and cannot be read ({why}); {mend}.")


# What comes of values that no run has written: another key, another type, a number without end.
MISFITS = (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, RecursionError)


@contextmanager
def taking_values(source: str | Path) -> Iterator[None]:
    """Name a run folder if the block fails over values in it that homeostat does not write.

    Raises:
        HomeostatError: In place of whatever the block met with.
    """
    try:
        yield
    except MISFITS as error:
        why = " ".join(str(error).split())[:200]
        raise HomeostatError(
            f"{source} holds values that this version of homeostat does not write "
            f"({type(error).__name__}: {why}); give whole run folders of this version."
        ) from error


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside ``folder``, then put it in its place, safe on the disk.

    Between the two renames the old content lies in ``.<name>.old``; nothing is ever half written,
    and a call after a kill right there first puts the old content back.

    Raises:
        HomeostatError: The disk is full.
    """
    fresh, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with naming_full_disk(folder.parent):
            fresh.mkdir(parents=True)
            write(fresh)
            for path in (*fresh.rglob("*"), fresh):
                _sync(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what `writing` left below ``folder`` in a process that was killed meanwhile."""
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same folder out while the block runs.

    The lock is on the folder itself and ends with the process, however that ends.

    Raises:
        HomeostatError: Another process is in there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HomeostatError(
            f"{folder} is in use by a run that is still going on; wait for it, or stop it first."
        ) from error
    except OSError:
        # Some network file systems have no locks; a run there is as good, only unguarded.
        return


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_root() -> Path:
    """``HOMEOSTAT_CACHE``, else the user's cache folder; it need not exist."""
    root = os.environ.get("HOMEOSTAT_CACHE") or platformdirs.user_cache_dir("homeostat")
    return Path(root).expanduser()
