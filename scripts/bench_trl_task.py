"""The task that both trainers of bench_trl.py get, and how they talk to it; standard library only.

A trainer's process waits for a line on its standard input before every update and answers with one
JSON line, so that only one of them works at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 50
LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = 1e-5
KL_COEF = 0.02


@dataclass(frozen=True)
class Task:
    """What is in the folder that both read.

    Attributes:
        model: A folder that transformers reads.
        trainer: ``ppo`` or ``grpo``.
        dtype: Of the frozen weights, of this trainer.
        episodes: Per update.
        new_tokens: Of every reply, exactly: the end-of-turn token does not stop it.
        epochs: Passes over the episodes of an update.
        minibatches: Optimiser steps per epoch, each on as many episodes.
        group: Episodes of one prompt.
        texts: What the user says, one per group.
        prompts: The same with the chat template around it, as token ids.
    """

    model: str
    trainer: str
    dtype: str
    episodes: int
    new_tokens: int
    epochs: int
    minibatches: int
    group: int
    texts: list[str]
    prompts: list[list[int]]

    @property
    def updates(self) -> int:
        """How many updates the prompts last for."""
        return len(self.texts) * self.group // self.episodes

    def write(self, path: Path) -> None:
        """Leave it where `read_task` finds it."""
        path.write_text(json.dumps(vars(self)))


def read_task(path: str) -> Task:
    """The task that was written there."""
    return Task(**json.loads(Path(path).read_text()))


class Clerk:
    """A trainer's side of the talk; what others print goes to standard error meanwhile."""

    def __init__(self) -> None:
        self._out, sys.stdout = sys.stdout, sys.stderr

    def wait(self) -> None:
        """Until the next update may begin."""
        if not sys.stdin.readline():
            sys.exit("the benchmark has ended.")

    def report(self, seconds: float, stages: dict[str, float], **more: Any) -> None:
        """One update: its seconds, of which so many in each stage; and the peak until now."""
        row = {"seconds": seconds, "stages": stages, "peak_bytes": peak_bytes(), **more}
        print(json.dumps(row), file=self._out, flush=True)


def timed(
    function: Callable[..., Any], clock: Callable[[], float], spent: Callable[[float], None]
) -> Callable[..., Any]:
    """``function``, which now tells ``spent`` the seconds of every call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        try:
            return function(*args, **kwargs)
        finally:
            spent(clock() - started)

    return call


def peak_bytes() -> int:
    """Peak resident memory of this process so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
