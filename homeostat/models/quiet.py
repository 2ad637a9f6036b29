"""What other libraries say while a model is loaded: kept back, and shown only if loading fails."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils import logging as transformers_logging

from homeostat.errors import HomeostatError

LOGGERS = ("transformers", "huggingface_hub")


class _Collector(logging.Handler):
    """Keeps every line once, in order."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[record.getMessage()] = None


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context no progress bars, notices or warnings; an error shows the last two."""
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            yield
    except HomeostatError:  # says by itself what is wrong
        raise
    except BaseException:
        said = [*collector.lines, *dict.fromkeys(str(warning.message) for warning in warned)]
        print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)
        raise
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
