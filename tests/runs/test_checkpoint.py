"""Checkpoints are whole or ignored, the last two are kept, and one of another run is refused."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homeostat.config.resume import checkpoints_in
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.report.metrics import LOGS, MetricsLog
from homeostat.runs.checkpoint import (
    Checkpoints,
    random_state,
    restore_random_state,
)
from homeostat.timing import Stopwatch


class Counter:
    """A trainer whose whole state is a number."""

    def __init__(self) -> None:
        self.done = 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]


@pytest.fixture
def make(tmp_path: Path, make_policy: Callable[..., Policy]) -> Callable[..., Checkpoints]:
    """Checkpoints of one folder, each time with everything else fresh."""

    def build(rank: int = 4, **names: str) -> Checkpoints:
        return Checkpoints(
            tmp_path / "checkpoint",
            {"trainer": "counter", "model": "tiny_random", **names},
            Counter(),
            make_policy(rank=rank),
            MetricsLog(tmp_path, None, print),
            Stopwatch(),
        )

    return build


def advance(checkpoints: Checkpoints, step: int) -> None:
    """One update, logged and kept."""
    checkpoints.trainer.load_state_dict({"done": step})
    for parameter in checkpoints.policy.adapter_parameters():
        parameter.data.add_(0.1 * step)
    checkpoints.log.step(step, {"a": float(step)}, [{"seed": step}], {"time/update_s": 1.0})
    checkpoints.save(step)


def restore(checkpoints: Checkpoints, override: bool = False) -> tuple[int, list[str]]:
    said: list[str] = []
    return checkpoints.restore(override, said.append), said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept(make: Callable[..., Checkpoints]) -> None:
    checkpoints = make()
    for step in (1, 2, 3):
        advance(checkpoints, step)
    assert names(checkpoints.folder) == ["step_000002", "step_000003"]


def test_everything_comes_back(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    first = make()
    first.watch.add({"update": 40.0}, 100.0)
    advance(first, 1)
    kept = {name: (tmp_path / name).read_bytes() for name in LOGS}
    weights = [p.detach().clone() for p in first.policy.adapter_parameters()]
    # Python's own generator has a test below: here the type checks draw from it too.
    drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist())
    first.log.step(2, {"a": 2.0}, [{"seed": 2}], {})  # a row whose checkpoint was never taken
    second = make()
    assert restore(second) == (1, [])
    assert second.trainer.state_dict() == {"done": 1}
    assert {name: (tmp_path / name).read_bytes() for name in LOGS} == kept
    for old, new in zip(weights, second.policy.adapter_parameters(), strict=True):
        assert torch.equal(old, new)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == drawn
    assert second.watch.seconds == {"update": 40.0}
    assert second.watch.wall_s >= 100


def test_without_a_checkpoint_the_run_begins_again(
    make: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    checkpoints = make()
    checkpoints.log.step(1, {"a": 1.0}, [{"seed": 1}], {})
    assert restore(checkpoints) == (0, [])
    assert not any((tmp_path / name).exists() for name in LOGS)


def test_one_that_was_being_written_is_ignored_and_later_removed(
    make: Callable[..., Checkpoints],
) -> None:
    checkpoints = make()
    advance(checkpoints, 1)
    half = checkpoints.folder / ".step_000002.new"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half of it")
    assert [p.name for p in checkpoints_in(checkpoints.folder)] == ["step_000001"]
    assert restore(make())[0] == 1
    advance(checkpoints, 2)
    assert names(checkpoints.folder) == ["step_000001", "step_000002"]


def test_a_failed_write_leaves_the_ones_before(
    make: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sentence for a full disk names the folder."""

    def full(state: Any, path: Path) -> None:  # noqa: ARG001
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    checkpoints = make()
    advance(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(HomeostatError, match=re.escape(str(tmp_path))):
            advance(checkpoints, 2)
    assert names(checkpoints.folder) == ["step_000001"]
    assert restore(make())[0] == 1


def test_a_damaged_one_is_named_and_the_one_before_still_works(
    make: Callable[..., Checkpoints],
) -> None:
    checkpoints = make()
    for step in (1, 2):
        advance(checkpoints, step)
    newest = checkpoints.folder / "step_000002"
    whole = (newest / "state.pt").read_bytes()
    for damage in (b"", b"no archive", whole[: len(whole) // 2]):
        (newest / "state.pt").write_bytes(damage)
        with pytest.raises(HomeostatError, match=r"step_000002 is damaged.*delete that folder"):
            restore(make())
    shutil.rmtree(newest)
    assert restore(make())[0] == 1


def test_one_of_another_model_trainer_or_shape_is_refused(
    make: Callable[..., Checkpoints],
) -> None:
    advance(make(), 1)
    with pytest.raises(HomeostatError, match=r"of counter on tiny_random.*as dpo on tiny_random"):
        restore(make(trainer="dpo"), override=True)
    with pytest.raises(HomeostatError, match=r"lora\.\*"):
        restore(make(rank=8), override=True)


def test_one_of_other_code_is_refused_unless_it_is_asked_for(
    make: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance(make(), 1)
    monkeypatch.setattr("homeostat.runs.checkpoint.code_version", lambda: "9.9")
    with pytest.raises(HomeostatError, match=r"9\.9.*resume_override=true"):
        restore(make())
    assert restore(make(), override=True) == (1, [])


def test_what_cannot_be_the_same_is_said(
    make: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance(make(), 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    step, said = restore(make())
    assert step == 1
    assert said == [
        "the number of threads is 77 and was 1: figures may differ in their last digits"
    ]


def test_generators_go_on_where_they_were() -> None:
    state = random_state()
    drawn = [(torch.rand(2).tolist(), np.random.randn(3).tolist(), random.random())]
    restore_random_state(state)
    drawn.append((torch.rand(2).tolist(), np.random.randn(3).tolist(), random.random()))
    assert drawn[0] == drawn[1]
