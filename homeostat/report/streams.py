"""Standard output and error that never end a run, and libraries that keep out of its lines.

What is printed is a display; the files of a run are the truth. So a character that a terminal lacks
is replaced, and what nobody can take any more (a closed pipe, a terminal that has gone) is dropped.
Only the command line calls this.
"""

from __future__ import annotations

import io
import logging
import os
import select
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Read by the libraries when they are imported; a value of the user's own stays.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def prepare_process() -> None:
    """Make the display of this process harmless; a second call changes nothing."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # not a notebook's or a test's own
            setattr(sys, name, _lasting(number, stream))
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal has gone, which is no reason
    for variable, value in {**QUIET, "HOME": _home()}.items():
        os.environ.setdefault(variable, value)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written is not worth a traceback
    if not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())


@contextmanager
def libraries_to(path: Path) -> Iterator[None]:
    """While the block runs, warnings of libraries go to this file, each once; none, no file."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="replace", delay=True)
    handler.setLevel(logging.WARNING)
    handler.addFilter(_Once())
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        handler.close()


class _Once(logging.Filter):
    """Lets a message pass once: an update may warn anew every time, and a run has thousands."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new."""
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


class _Lasting(io.FileIO):
    """A stream that drops what it cannot write."""

    def write(self, data: Any) -> int:
        """Bytes written or dropped: all of them, or as many as the system takes at once."""
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select((), (self,), ())
        except OSError:
            return memoryview(data).nbytes
        return written


def _lasting(number: int, stream: TextIO | None) -> TextIO:
    """The standard stream of this number, in the encoding that it had."""
    if stream is None:
        _occupy(number)
    else:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        encoding=None if stream is None else stream.encoding,
        errors="replace",
        line_buffering=True,
    )


def _home() -> str:
    """Where libraries keep files of theirs; they complain, or use the working folder, without."""
    home = os.path.expanduser("~")  # in a container the user may have none
    return tempfile.gettempdir() if home == "~" else home


def _occupy(number: int) -> None:
    """Keep the next file that is opened from becoming a standard stream that was closed."""
    try:
        os.fstat(number)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
