from __future__ import annotations

import gc
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console as RichConsole

from homeostat.config.run import RunConfig
from homeostat.report.console import Console
from homeostat.runs.run import run


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_job_leaves_no_tensors_to_the_next(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    small = ("scale=smoke", "model=tiny_random", "model.num_layers=2", "trainer.max_steps=1")
    quick = ("signals=[intrinsic]", "reward=intrinsic_only", "eval.suite=[]", "tracker=none")
    left = []
    for seed in range(3):
        config = composed(*small, *quick, f"seed={seed}")
        run(config, tmp_path / str(seed), Console(RichConsole(file=io.StringIO())))
        left.append(live_tensors())
    assert left[1] == left[2]
    assert left[1] - left[0] < 20  # a model has more than that; the first job fills constants
