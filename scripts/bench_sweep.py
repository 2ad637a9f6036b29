"""Measures what a sweep costs beside its jobs, by launcher and number of workers.

python scripts/bench_sweep.py [--json] [--jobs 12] [--sleepers 64] [--seconds 20]

Small jobs, each a whole run of a random model (`homeostat -m scale=smoke model=tiny_random`), under
one worker and under two, a thread for each. The first job of all is not counted: it fills the
cache, which all share. The overhead of a job is what its workers' time is beyond its run:

    (seconds of the command * workers - sum of the runs' own seconds) / jobs

which holds the imports of a process, the composing of its config, waiting for the last worker, and
the comparison at the end.

Sleeping jobs, on Ray with as many workers as jobs: each composes its config, keeps its record and
sleeps. What the command takes beyond one sleep is what so many jobs cost to hand out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from homeostat.config.sweep import read_jobs

LAUNCHERS = {
    "basic": (1, ()),
    "joblib, 1 worker": (1, ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1")),
    "joblib, 2 workers": (2, ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
    "ray, 1 worker": (1, ("hydra/launcher=ray", "hydra.launcher.init.num_cpus=1")),
    "ray, 2 workers": (2, ("hydra/launcher=ray", "hydra.launcher.init.num_cpus=2")),
}
SMALL = ("model=tiny_random", "scale=smoke", "eval=homeostasis")
HOMEOSTAT = "import sys; from homeostat.cli import main; sys.exit(main())"
SLEEPER = """\
import sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from homeostat.config.register import CONF, register
from homeostat.config.sweep import note_job

def sleep(composed):
    job = HydraConfig.get()
    time.sleep({seconds})
    note_job(Path(job.runtime.cwd, job.sweep.dir), job.job.num, job.overrides.task, "finished")

register()
hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(sleep)()
"""


def command(program: str, *arguments: str, folder: Path) -> float:
    """Seconds that a multirun takes.

    Raises:
        RuntimeError: It has failed.
    """
    # Ray lets other work on the machine go first, unless it is told not to.
    quiet = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    quiet["HOMEOSTAT_CACHE"] = str(folder / "cache")
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, "-m", *arguments],
        cwd=folder,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} has failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def small_jobs(jobs: int, folder: Path) -> list[dict[str, Any]]:
    """A row per launcher: seconds of the command, of its runs, and the overhead of a job."""
    command(HOMEOSTAT, *SMALL, "seed=100", "hydra.sweep.dir=warm", folder=folder)
    rows = []
    for number, (name, (workers, options)) in enumerate(LAUNCHERS.items()):
        sweep = f"hydra.sweep.dir=sweep{number}"
        seconds = command(HOMEOSTAT, *SMALL, f"seed=range({jobs})", sweep, *options, folder=folder)
        found = (folder / f"sweep{number}").glob("*/summary.json")
        runs = [sum(json.loads(path.read_text())["time_s"].values()) for path in found]
        if len(runs) != jobs:
            raise RuntimeError(f"{name}: {len(runs)} of {jobs} runs have a summary.")
        row = {"launcher": name, "workers": workers, "seconds": seconds, "in_runs_s": sum(runs)}
        rows.append(row | {"overhead_s": (seconds * workers - sum(runs)) / jobs})
        print(describe(rows[-1], jobs), file=sys.stderr)
    return rows


def sleeping_jobs(jobs: int, seconds: float, folder: Path) -> dict[str, Any]:
    """What handing out so many jobs at once takes on Ray."""
    spent = command(
        SLEEPER.format(seconds=seconds),
        *("hydra/launcher=ray", f"hydra.launcher.init.num_cpus={jobs}", f"seed=range({jobs})"),
        *("hydra.sweep.dir=sleepers", "model=tiny_random"),
        folder=folder,
    )
    done = [one for one in read_jobs(folder / "sleepers") if one["status"] == "finished"]
    if len(done) != jobs:
        raise RuntimeError(f"{len(done)} of {jobs} sleeping jobs have left a record.")
    beyond = spent - seconds
    return {"jobs": jobs, "sleep_s": seconds, "seconds": spent, "overhead_s": beyond / jobs}


def describe(row: dict[str, Any], jobs: int) -> str:
    """A row as a line."""
    return (
        f"{row['launcher']:<18} {jobs} jobs in {row['seconds']:6.1f} s, {row['in_runs_s']:6.1f} s "
        f"of it in runs; overhead of a job {row['overhead_s']:.2f} s of a worker"
    )


def main() -> None:
    """Measure, and print lines or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--jobs", type=int, default=12, help="small jobs of each sweep")
    parser.add_argument("--sleepers", type=int, default=64, help="sleeping jobs, all at once")
    parser.add_argument("--seconds", type=float, default=20, help="that each of them sleeps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sleeping = sleeping_jobs(options.sleepers, options.seconds, Path(folder))
        print(
            f"ray, {sleeping['jobs']} workers: as many jobs that sleep {sleeping['sleep_s']:g} s "
            f"in {sleeping['seconds']:.1f} s, {sleeping['overhead_s']:.2f} s a job beyond a sleep",
            file=sys.stderr,
        )
        rows = small_jobs(options.jobs, Path(folder))
    if options.json:
        cores = os.cpu_count()
        print(json.dumps({"cores": cores, "small": rows, "sleeping": sleeping}, indent=1))


if __name__ == "__main__":
    main()
