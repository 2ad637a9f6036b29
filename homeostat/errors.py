"""The one error class that the command line shows without a traceback, and how memory runs out."""

from __future__ import annotations

import re


class HomeostatError(Exception):
    """Something the user can mend; the message says what was wrong, what is allowed and the fix."""


def out_of_memory(error: BaseException) -> str | None:
    """What a failure for want of memory says in a line; None for any other error.

    Torch raises a RuntimeError of its own on a CUDA device and a bare one on a CPU.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, MemoryError):
        return lines[0]
    said = re.search(r"out of memory|can't allocate memory|not enough memory", str(error), re.I)
    named = type(error).__name__ == "OutOfMemoryError"
    return lines[0] if isinstance(error, RuntimeError) and (said or named) else None
