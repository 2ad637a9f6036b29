"""The acceptance run for a GPU: its budget, what it says of failures, its table, its shapes."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
PUBLISHED = {  # parameters, 10^9, embeddings counted once
    "Qwen2.5-0.5B": 0.494,
    "Qwen3-0.6B": 0.596,
    "gemma-3-1b": 1.0,
    "gemma-3-4b": 3.88,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts, which import each other by name."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    names = ("records", "models", "updates", "parts", "acceptance")
    return SimpleNamespace(**{name: import_module(f"gpu_{name}") for name in names})


def part_of(gpu: Any, name: str, work: Any, **options: Any) -> Any:
    return gpu.records.Part(name, lambda _: work(), **options)


def fail(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


def test_a_part_that_no_longer_fits_is_listed(gpu: Any) -> None:
    found = gpu.records.Finding("fine", {})
    parts = [
        part_of(gpu, "short", lambda: found, least_s=1.0),
        part_of(gpu, "long", lambda: found, least_s=100.0),
        part_of(gpu, "short again", lambda: found, least_s=1.0),
    ]
    told: list[int] = []
    records = gpu.records.run_parts(parts, gpu.records.Budget(50.0), lambda r: told.append(len(r)))
    assert [record.status for record in records] == ["done", "skipped: no time left", "done"]
    assert told == [1, 2, 3]


def test_a_part_is_stopped_when_the_time_is_up(gpu: Any) -> None:
    found = gpu.records.Finding("fine", {})
    parts = [
        part_of(gpu, "endless", lambda: time.sleep(60), least_s=0.01),
        part_of(gpu, "next", lambda: found),
        part_of(gpu, "quick", lambda: found, least_s=0.0),
    ]
    began = time.perf_counter()
    records = gpu.records.run_parts(parts, gpu.records.Budget(0.2), lambda _: None)
    assert time.perf_counter() - began < 5
    assert records[0].status == "failed: no time left after 0 s"
    assert [record.status for record in records[1:]] == ["skipped: no time left", "done"]


def test_a_failure_is_one_sentence_and_stops_nothing(gpu: Any) -> None:
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB. Sorry.")
    missed = gpu.records.Finding("1 of 2", {"share": 0.5}, met=False)
    parts = [
        part_of(gpu, "full", fail(full)),
        part_of(gpu, "silent", fail(KeyError())),
        part_of(gpu, "elsewhere", fail(gpu.records.Skipped("needs CUDA"))),
        part_of(gpu, "missed", lambda: missed),
        part_of(gpu, "passed", lambda: gpu.records.Finding("2 of 2", {}, met=True)),
    ]
    records = gpu.records.run_parts(parts, gpu.records.Budget(60.0), lambda _: None)
    assert [record.status for record in records] == [
        "failed: OutOfMemoryError: CUDA out of memory",
        "failed: KeyError",
        "skipped: needs CUDA",
        "MISSED",
        "passed",
    ]
    assert [record.is_bad for record in records] == [True, True, False, True, False]
    assert gpu.records.verdict(records) == "1 of 5 parts in order, 3 failed or missed, 1 skipped"
    lines = gpu.records.table(records)
    assert lines[0].split() == ["part", "s", "result"]
    assert lines[4] == "missed        0.0  MISSED: 1 of 2"
    assert len(lines) == 6


def test_a_part_sees_what_came_before(gpu: Any) -> None:
    seen: list[str] = []
    first = part_of(gpu, "first", lambda: gpu.records.Finding("", {"hours": 2}))
    second = gpu.records.Part("second", lambda before: seen.extend(before) or fail(OSError("x"))())
    gpu.records.run_parts([first, second], gpu.records.Budget(60.0), lambda _: None)
    assert seen == ["first"]


def test_the_run_writes_what_it_found_and_says_what_failed(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    # Its clock began when this process did, which may be long ago.
    options = ["--device", "cpu", "--tiny", "--json", str(path), "--minutes", "600"]
    monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", *options])
    parts = [part_of(gpu, "broken", fail(ValueError("no such thing. Try another.")))]
    monkeypatch.setattr(gpu.parts, "make_parts", lambda *_: parts)
    assert gpu.acceptance.main() == 1
    found = json.loads(path.read_text())
    assert found["parts"][0]["status"] == "failed: ValueError: no such thing"
    assert (found["run_on_a_gpu"], found["complete"]) == (False, True)
    assert (found["failed_or_missed"], found["skipped"]) == (1, 0)
    assert "No GPU has run this" in capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_their_published_size(gpu: Any, name: str) -> None:
    place = gpu.models.Place(torch.device("meta"), tiny=False)
    model = gpu.models.random_model(name, place, torch.bfloat16)
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    assert billions == pytest.approx(PUBLISHED[name], rel=0.005)


def test_a_shrunken_shape_is_of_the_same_class(gpu: Any) -> None:
    for name in gpu.models.SHAPES:
        whole, tiny = (gpu.models.architecture(name, shrunk) for shrunk in (False, True))
        assert type(whole) is type(tiny)
        assert tiny.num_hidden_layers == 6
        # Both kinds of blocks that gemma has are there.
        assert set(getattr(tiny, "layer_types", ())) == set(getattr(whole, "layer_types", ()))


def test_an_update_must_be_near_its_plan_and_sampling_below_it(gpu: Any) -> None:
    plan = gpu.updates.MemoryPlan(
        weights=60, adapters=10, optimiser=30, kv_cache=100, activations=80, logits=20
    )
    assert gpu.updates.planned(plan) == {"sampling": 200, "update": 200}

    def verdict(**peaks: int | None) -> bool | None:
        met: bool | None = gpu.updates.is_within(gpu.updates.ratios(plan, peaks))
        return met

    assert verdict(sampling=120, update=190) is True
    assert verdict(sampling=240, update=190) is False
    assert verdict(sampling=120, update=240) is False
    assert verdict(sampling=120, update=160) is False
    assert verdict(update=200) is True
    assert verdict(sampling=None, update=None) is None


def test_without_a_gpu_a_peak_is_missing_and_not_0(gpu: Any) -> None:
    gauge = gpu.updates.Gauge(torch.device("cpu"))
    gauge.measure("update", lambda: None)
    assert gauge.peaks == {"update": None}
    assert gauge.seconds["update"] > 0


def test_hours_follow_from_the_stages_by_hand(gpu: Any) -> None:
    place = gpu.models.Place(torch.device("cpu"), tiny=False)
    stages = {"generate": 10.0, "trace": 2.0, "update": 4.0}
    name = "12 GB, ppo, Qwen2.5-0.5B"
    before = {name: gpu.records.Record(name, "passed", figures={"stages_s": stages})}
    found = gpu.parts.run_time(place, before)
    # 100 updates of 64 episodes; 128 held out, twice, and 128 for the set points.
    assert found.figures["hours"] == pytest.approx((100 * 16 + 3 * 128 * 12 / 64) / 3600)
    assert found.met is True
    with pytest.raises(gpu.records.Skipped):
        gpu.parts.run_time(place, {})


def test_the_cap_is_12_gb_of_whatever_there_is_and_is_lifted(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=48e9)
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    with pytest.raises(ValueError, match="within"), gpu.updates.capped(torch.device("cuda")):
        raise ValueError("within")
    assert shares == [0.25, 1.0]


def test_what_does_not_fit_computes_blocks_twice_and_then_halves_the_batch(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gpu.models.run_settings("ppo", tiny=False).trainer

    def bytes_of(_: Any, footprint: Any) -> Any:
        activations = int(0 if footprint.recomputes else 4e9)
        return gpu.updates.MemoryPlan(
            weights=int(8e9),
            adapters=0,
            optimiser=0,
            kv_cache=int(footprint.rows * per_row),
            activations=activations,
            logits=int(1e9),
        )

    monkeypatch.setattr(gpu.models, "plan_memory", bytes_of)
    per_row = 1e6
    found = gpu.models.fitted(None, config, 600)
    assert (found.config.batch_size, found.changed) == (64, "with checkpointing")
    per_row = 2e8  # 48 rows at once are 9.6 GB, 32 are 6.4, 16 are 3.2
    found = gpu.models.fitted(None, config, 600)
    assert found.config.batch_size == 16
    assert found.changed == "with 16 episodes for 64 and with checkpointing"
    per_row = 1e10
    with pytest.raises(ValueError, match="above the cap"):
        gpu.models.fitted(None, config, 600)
