"""Sweeps that go on: which jobs are done, what a failed one leaves, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import homeostat.runs.work
from homeostat.cli import _look_back
from homeostat.config.resume import changed_values, config_hash, save_config
from homeostat.config.run import RunConfig
from homeostat.config.sweep import (
    continue_command,
    how_to_go_on,
    list_jobs,
    note_job,
    plan_job,
    read_jobs,
)
from homeostat.errors import HomeostatError, out_of_memory
from homeostat.report.console import Console
from homeostat.runs.after_sweep import jobs_of
from homeostat.runs.run import run

TINY = ("model=tiny_random", "scale=smoke", "tracker=none", "dtype=float32")
SCRIPT = Path(sys.executable).with_name("homeostat")
Compose = Callable[..., RunConfig]


def leave(folder: Path, config: RunConfig, status: str, overrides: Sequence[str] = TINY) -> Path:
    """What a run has left in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, overrides, folder)
    summary = {"status": status, "time_s": {"report": 1.0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_config_is_known_again_by_what_it_does(composed: Compose, tmp_path: Path) -> None:
    own = config_hash(composed(*TINY))
    same = (["tracker=tensorboard"], ["resume=x"], ["compare=[a]", "compare_baseline=b"])
    for more in same:
        assert config_hash(composed(*TINY, *more)) == own, more
    for more in (["seed=1"], ["trainer.lr=0.5"], ["device=cpu"]):
        assert config_hash(composed(*TINY, *more)) != own, more
    folder = leave(tmp_path / "a", composed(*TINY), "finished")
    assert (folder / "config.sha256").read_text().strip() == own
    assert changed_values(composed(*TINY, "compare=[a]"), folder) == {}


def test_a_finished_job_is_found_wherever_it_is(composed: Compose, tmp_path: Path) -> None:
    config = composed(*TINY, "seed=3")
    done = leave(tmp_path / "7", config, "finished")
    assert plan_job(config, tmp_path, tmp_path / "0").done == done
    (done / "config.sha256").unlink()  # a run of before hashes were kept
    assert plan_job(config, tmp_path, tmp_path / "0").done == done
    other = plan_job(composed(*TINY, "seed=4"), tmp_path, tmp_path / "0")
    assert (other.done, other.resume) == (None, None)


def test_a_job_goes_on_from_its_checkpoint(composed: Compose, tmp_path: Path) -> None:
    config = composed(*TINY)
    folder = leave(tmp_path / "2", config, "failed: the power went")
    (folder / "checkpoint" / "step_000001").mkdir(parents=True)
    plan = plan_job(config, tmp_path, tmp_path / "0")
    assert (plan.done, plan.resume) == (None, folder)


def test_a_job_without_a_checkpoint_begins_anew(composed: Compose, tmp_path: Path) -> None:
    config = composed(*TINY)
    folder = leave(tmp_path / "0", config, "failed: the power went")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "evals").mkdir()
    plan = plan_job(config, tmp_path, folder)
    assert (plan.done, plan.resume) == (None, None)
    assert list(folder.iterdir()) == [], "nothing of the try before may be taken for the new run's"


@pytest.mark.parametrize(("status", "metrics"), [("finished", False), ("failed: x", True)])
def test_a_run_of_another_config_is_not_overwritten(
    status: str, metrics: bool, composed: Compose, tmp_path: Path
) -> None:
    folder = leave(tmp_path / "0", composed(*TINY), status)
    if metrics:
        (folder / "metrics.jsonl").write_text("{}\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(HomeostatError, match="another config, which is not overwritten"):
        plan_job(composed(*TINY, "seed=9"), tmp_path, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_jobs_are_listed_before_they_start(tmp_path: Path) -> None:
    target = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    sweeper = {"_target_": target, "params": {"seed": "0,1"}}
    own = {"sweeper": sweeper, "overrides": {"task": ["reward=full,none", "scale=smoke"]}}
    jobs = jobs_of(OmegaConf.create({"hydra": own}))
    assert sorted(jobs) == sorted(
        [f"seed={s}", f"reward={r}", "scale=smoke"] for s in (0, 1) for r in ("full", "none")
    )
    list_jobs(tmp_path, jobs, ["-m", "reward=full,none", "+hydra.sweep.dir=old"])
    assert [record["status"] for record in read_jobs(tmp_path)] == ["not started"] * 4
    for number, status in enumerate(["finished", "done before", "starved: x", "failed: y"]):
        note_job(tmp_path, number, jobs[number], status, tmp_path / str(number))
    command = f"homeostat -m reward=full,none hydra.sweep.dir={tmp_path}"
    assert how_to_go_on(tmp_path) == (
        f"1 of 4 jobs are left; those that are done are skipped by\n{command}"
    )
    note_job(tmp_path, 3, jobs[3], "finished", tmp_path / "3")
    assert how_to_go_on(tmp_path) is None


def test_the_records_of_another_sweep_are_not_overwritten(tmp_path: Path) -> None:
    list_jobs(tmp_path, [["seed=0"], ["seed=1"]], ["-m", "seed=0,1"])
    before = {path: path.read_bytes() for path in (tmp_path / "jobs").iterdir()}
    with pytest.raises(HomeostatError, match=r"other jobs; .* goes on by: homeostat -m seed=0,1"):
        list_jobs(tmp_path, [["seed=1"], ["seed=2"]], ["-m", "seed=1,2"])
    assert {path: path.read_bytes() for path in (tmp_path / "jobs").iterdir()} == before
    list_jobs(tmp_path, [["seed=0"], ["seed=2"], ["seed=1", "resume_override=true"]], ["-m", "x"])
    assert len(read_jobs(tmp_path)) == 3


def test_the_command_to_go_on_survives_a_shell(tmp_path: Path) -> None:
    typed = ["-m", "trainer.barrier={divergence: none},{aggregate: max}", "seed=0,1"]
    command = continue_command(typed, tmp_path / "my sweep")
    echoed = subprocess.run(
        ["sh", "-c", command.replace("homeostat", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert echoed.stdout.splitlines() == [*typed, f'hydra.sweep.dir="{tmp_path / "my sweep"}"']


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore"), "CUDA out of memory"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "enforce"),
        (RuntimeError("shapes do not match"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, said: str | None) -> None:
    found = out_of_memory(error)
    assert (said is None) == (found is None)
    if said is not None and found is not None:
        assert said in found
        assert "\n" not in found


def test_an_out_of_memory_run_is_recorded_as_that(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nOf which ...")

    monkeypatch.setattr(homeostat.runs.work, "load_policy", load)
    with pytest.raises(HomeostatError, match=r"lower trainer\.micro_batch_tokens \(now \d+\)"):
        run(composed(*TINY), tmp_path, Console())
    status = json.loads((tmp_path / "summary.json").read_text())["status"]
    assert status.startswith("failed: out of memory: CUDA out of memory. Tried to allocate 2 GiB.")
    assert "Of which" not in status


def test_a_sweep_goes_on_by_the_command_that_it_prints(composed: Compose, tmp_path: Path) -> None:
    """Job 0 is done, in the folder of another number; job 1 fails before it has a config."""
    lrs = (*TINY, "trainer.lr=0.001")
    rows = [
        {"arm": arm, "item": str(i), "right": float(i < 3 + 3 * (arm == "trained")), "chance": 0.25}
        for arm in ("base", "trained")
        for i in range(8)
    ]
    folder = leave(tmp_path / "sweep" / "5", composed(*lrs), "finished", lrs)
    (folder / "evals").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "evals" / "capability.jsonl").write_text(text)

    typed = ("-m", *TINY, "trainer.lr=0.001,-1")
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(SCRIPT), *typed, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 1
    assert f"job 0 is done already: {folder}" in done.stdout
    assert "trainer.lr=-1.0 must be above 0" in done.stderr
    sweep = tmp_path / "sweep"
    assert done.stdout.splitlines()[-2:] == [
        "1 of 2 jobs are left; those that are done are skipped by",
        f"homeostat {' '.join(typed)} hydra.sweep.dir={sweep}",
    ]
    found = json.loads((sweep / "comparison.json").read_text())
    assert found["arms"][1]["cells"]["capability"]["difference"]["mean"] == pytest.approx(3 / 8)
    assert [(r["arm"], r["status"], r["reason"]) for r in found["problems"]] == [
        ("trainer.lr=-1", "failed", "trainer.lr=-1.0 must be above 0.")
    ]
    _look_back(composed(f"compare=[{sweep}]"), tmp_path / "out", False)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    with pytest.raises(HomeostatError, match="compare takes run folders, and no sweep"):
        _look_back(composed(f"compare={sweep}"), tmp_path / "out", True)
