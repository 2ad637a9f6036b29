"""Sweeps on the engines of others: joblib, submitit, Ray, Optuna; the records decide under all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from homeostat.config.sweep import list_jobs, note_job, read_jobs
from homeostat.errors import HomeostatError
from hydra_plugins.homeostat_engines.optuna_sweeper import (
    OptunaSweeper,
    distribution,
    ended,
    take_up,
    tell,
    write_result,
)

SCRIPT = Path(sys.executable).with_name("homeostat")
SMOKE = ("model=tiny_random", "scale=smoke", "eval=homeostasis", "tracker=none")
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra.launcher.timeout_min=5"),
    "ray": ("ray", "hydra.launcher.init.num_cpus=2"),
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for this module: two workers that find it cold fit the probes once."""
    return tmp_path_factory.mktemp("cache")


def homeostat(*arguments: str, cache: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOMEOSTAT_CACHE": str(cache)}
    quiet["RAY_worker_niceness"] = "0"  # Ray lets other work on the machine go first
    return subprocess.run(
        [str(SCRIPT), "-m", *SMOKE, "hydra.sweep.dir=sweep", *arguments],
        cwd=cwd,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_job_fails_the_command_and_the_others_go_on(
    launcher: str, shared_cache: Path, tmp_path: Path
) -> None:
    module, workers = LAUNCHERS[launcher]
    pytest.importorskip(module)
    typed = (f"hydra/launcher={launcher}", workers, "rollout.max_new_tokens=6,3000")
    done = homeostat(*typed, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    records = read_jobs(tmp_path / "sweep")
    assert records[0]["status"] == "finished"
    assert records[1]["status"].startswith("failed: a conversation of ")
    assert "Traceback" not in done.stderr
    assert "1 of 2 jobs are left" in done.stdout
    assert (tmp_path / "sweep" / "comparison.html").is_file()
    # What is done is skipped, under the other engines too.
    typed = (f"hydra/launcher={launcher}", workers, "rollout.max_new_tokens=6")
    (tmp_path / "sweep" / "jobs" / "1.json").unlink()
    again = homeostat(*typed, cache=shared_cache, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [record["status"] for record in read_jobs(tmp_path / "sweep")] == ["done before"]


@pytest.mark.slow
def test_optuna_searches_and_goes_on_in_the_same_folder(shared_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    searched = ("trainer.lr=tag(log, interval(1e-5, 1e-2))", "lora.rank=2,4")
    typed = ("hydra/sweeper=optuna", *searched, "objective=eval/relational_true")
    first = homeostat(*typed, "hydra.sweeper.trials=1", cache=shared_cache, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    more = homeostat(*typed, "hydra.sweeper.trials=3", cache=shared_cache, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    found = json.loads((tmp_path / "sweep" / "optuna.json").read_text())
    assert sorted(trial["job"] for trial in found["trials"]) == [0, 1, 2]
    values = [trial["value"] for trial in found["trials"]]
    assert values == sorted(values, reverse=True)
    for trial in found["trials"]:
        summary = json.loads((tmp_path / "sweep" / str(trial["job"]) / "summary.json").read_text())
        assert trial["value"] == summary["eval"]["relational_true"]["diff"]
    assert [record["status"] for record in read_jobs(tmp_path / "sweep")] == ["finished"] * 3


def space(*overrides: str) -> list[Any]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [distribution(override) for override in parsed]


def test_what_is_searched_of_each_kind_of_sweep() -> None:
    optuna = pytest.importorskip("optuna")
    rank, layers, rate, share = space(
        "a=2,4", "b=range(1,9,2)", "c=tag(log,interval(1e-5,1e-2))", "d=range(0.1,0.5,0.1)"
    )
    assert rank == optuna.distributions.CategoricalDistribution(["2", "4"])
    assert layers == optuna.distributions.IntDistribution(1, 7, step=2), "8 is not on the way"
    assert rate == optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
    assert (share.low, share.high, share.step) == pytest.approx((0.1, 0.4, 0.1))
    rank, down = space("a=int(interval(2,16))", "b=range(10,0,-2)")
    assert rank == optuna.distributions.IntDistribution(2, 16)
    assert down == optuna.distributions.IntDistribution(2, 10, step=2)
    with pytest.raises(ValueError, match=r"e=glob\(\*\): Optuna searches choices"):
        space("e=glob(*)")
    with pytest.raises(ValueError, match="cannot be on a logarithmic scale"):
        space("e=tag(log,range(1,9,2))")


def test_a_job_without_a_figure_has_failed_and_the_best_comes_first(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(direction="maximize")
    lr = {"lr": optuna.distributions.FloatDistribution(0, 1)}
    for value, status in (
        (0.1, JobStatus.COMPLETED),
        (math.nan, JobStatus.COMPLETED),
        (0.3, JobStatus.COMPLETED),
        (None, JobStatus.FAILED),
    ):
        done = JobReturn(status=status)
        done.return_value = value
        tell(study, study.ask(lr), done)
    assert ended(study) == 4
    write_result(study, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["job"], row["value"]) for row in found["trials"]] == [
        (2, 0.3),
        (0, 0.1),
        (1, None),
        (3, None),
    ]


def test_what_was_left_half_done_is_done_again_and_counts_once() -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study()
    lr = {"lr": optuna.distributions.FloatDistribution(0, 1)}
    study.tell(study.ask(lr), 1.0)
    killed = study.ask(lr)
    assert take_up(study) == [1]
    again = study.ask(lr)
    assert (again.number, again.params) == (2, killed.params)
    study.tell(again, state=optuna.trial.TrialState.FAIL)
    assert ended(study) == 2
    assert take_up(study) == [2], "a failed one is tried again, too; what was taken up is not"
    third = study.ask(lr)
    study.tell(third, 2.0)
    assert (third.params, ended(study), take_up(study)) == (killed.params, 2, [])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"trials": 0}, "hydra.sweeper.trials=0 must be at least 1"),
        ({"direction": "up"}, "hydra.sweeper.direction=up must be one of maximize, minimize"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changed: dict[str, Any], says: str) -> None:
    given = {"trials": 2, "at_once": 1, "direction": "maximize", "seed": 0, "params": None}
    with pytest.raises(ValueError, match=says):
        OptunaSweeper(**(given | changed))


def test_nothing_to_search_is_said(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sweeper = OptunaSweeper(trials=2, at_once=1, direction="maximize", seed=0, params=None)
    sweeper.folder = str(tmp_path)
    with pytest.raises(ValueError, match="has nothing to search"):
        sweeper.sweep(["seed=0"])


def test_more_trials_go_on_in_a_folder_that_keeps_its_records(tmp_path: Path) -> None:
    command = ["-m", "hydra/sweeper=optuna", "trainer.lr=interval(0,1)", "hydra.sweeper.trials=2"]
    list_jobs(tmp_path, [], command)
    note_job(tmp_path, 0, ["trainer.lr=0.5"], "finished")
    list_jobs(tmp_path, [], [*command[:-1], "hydra.sweeper.trials=9"])
    assert [record["status"] for record in read_jobs(tmp_path)] == ["finished"]
    with pytest.raises(HomeostatError, match="holds a sweep with other jobs"):
        list_jobs(tmp_path, [], ["-m", "hydra/sweeper=optuna", "seed=range(9)"])


def test_a_worker_that_dies_is_a_failed_job() -> None:
    from hydra_plugins.homeostat_engines.ray_launcher import RayLauncher

    class RayError(Exception):
        pass

    def get(_pending: object) -> JobReturn:
        raise RayError("the worker died")

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError))
    launcher = object.__new__(RayLauncher)
    assert launcher._result(ray, object()).status == JobStatus.FAILED
