"""The one error class shown without a traceback, and how memory and disks run out."""

from __future__ import annotations

import errno
import re

# How native writers put it that hand on no error number: torch.save twice, and numpy.
UNWRITTEN = r"no space left|quota exceeded|inline_container|PytorchStream|requested and \d+ written"


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


def out_of_disk(error: BaseException) -> bool:
    """Whether a failure to write, or the one that it came from, means that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if not isinstance(error, HomeostatError) and re.search(UNWRITTEN, str(error), re.I):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and out_of_disk(cause)
