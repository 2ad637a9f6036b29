"""A sweep as a list of jobs: which are done, what each of them has come to, how to go on.

Every job keeps a record in ``jobs/<number>.json`` of the sweep's folder, so that one that failed
before its run began, or never started, is not forgotten. A job is known again by the hash of its
config. No torch import.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.config.foreign import refuse_ways_out
from homeostat.config.resume import (
    CONFIG,
    OVERRIDES,
    OWN_KEYS,
    assignment,
    checkpoints_in,
    config_hash,
    hash_of,
    is_finished,
    key_of,
    read_config,
)
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.files import alone_in, read_json, write_text

JOBS = "jobs"
COMMAND = "jobs/command.txt"  # that does what is left
NOT_STARTED, RUNNING, SKIPPED = "not started", "running", "done before"
STOPPED = "stopped before it ended"
ENDED = ("finished", "starved", "broken", SKIPPED)
SWEEP_DIR = "hydra.sweep.dir"
TRIALS = "hydra.sweeper.trials"  # of a sweeper that chooses the jobs; may be raised later


@dataclass(frozen=True)
class Plan:
    """What a job of a sweep has to do: nothing (``done``), go on (``resume``), or all of it."""

    done: Path | None = None
    resume: Path | None = None


def run_folders(folder: Path) -> list[Path]:
    """Every run folder at or below ``folder``; what wandb keeps below a run is none."""
    named = (path for path in folder.rglob(OVERRIDES) if path.is_file())
    folders = (path.parent for path in named if (path.parent / CONFIG).is_file())
    return sorted(folders, key=lambda path: [_natural(part) for part in path.parts])


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), part) if part.isdecimal() else (1, 0, part)


def plan_job(config: RunConfig, sweep: Path, folder: Path) -> Plan:
    """What is left to do of a job, judged by the runs that the sweep's folder holds.

    Args:
        config: Of the job.
        sweep: Folder of the sweep.
        folder: Of this job; emptied if what lies there is of no use to anyone.

    Raises:
        HomeostatError: The folder holds another run, or something in the run that goes on leads
            out of its folder.
    """
    job_hash = config_hash(config)
    same = [path for path in run_folders(sweep) if kept_hash(path) == job_hash]
    for path in same:
        if is_finished(path):
            return Plan(done=path)
    begun = [path for path in same if checkpoints_in(path / "checkpoint")]
    if begun:
        refuse_ways_out(begun[-1], SWEEP_DIR)
        return Plan(resume=begun[-1])
    if (folder / CONFIG).is_file():
        _make_room(folder, folder in same)
    return Plan()


def _make_room(folder: Path, same: bool) -> None:
    """Empty a job's folder of a run that came to nothing.

    Raises:
        HomeostatError: It has come to something, with another config.
    """
    if not same and (is_finished(folder) or (folder / "metrics.jsonl").exists()):
        what = "finished run" if is_finished(folder) else "run"
        raise HomeostatError(
            f"{folder} holds a {what} with another config, which is not overwritten; give the "
            f"sweep a folder of its own, or {SWEEP_DIR}=<folder> of the sweep that it continues."
        )
    with alone_in(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def kept_hash(folder: Path) -> str:
    """Hash of the config of the run in ``folder``, in today's form."""
    return hash_of(read_config(folder))


def list_jobs(sweep: Path, jobs: Sequence[Sequence[str]], command: Sequence[str]) -> None:
    """Write a record of every job before the first begins; those of an earlier try go away.

    Args:
        sweep: Folder of the sweep; made if absent.
        jobs: The overrides of each job; empty where a sweeper chooses them as it goes, which goes
            on with what an earlier try has left.
        command: What was typed, without the name of the program.

    Raises:
        HomeostatError: The folder has records of jobs that are not among these.
    """
    typed = continue_command(command, sweep)
    _refuse_other_sweep(sweep, jobs, typed)
    if jobs:
        shutil.rmtree(sweep / JOBS, ignore_errors=True)
    (sweep / JOBS).mkdir(parents=True, exist_ok=True)
    write_text(sweep / COMMAND, typed + "\n")
    for number, overrides in enumerate(jobs):
        _write(sweep, {"job": number, "overrides": list(overrides), "status": NOT_STARTED})


def _refuse_other_sweep(sweep: Path, jobs: Sequence[Sequence[str]], typed: str) -> None:
    """Raise a HomeostatError if records of other jobs would go away; more jobs may be added."""
    path = sweep / COMMAND
    before = path.read_text(encoding="utf-8").strip() if path.is_file() else typed
    listed = {_arm(record["overrides"]) for record in read_jobs(sweep)}
    if _same_sweep(before) == _same_sweep(typed) or listed <= set(map(_arm, jobs)):
        return
    raise HomeostatError(
        f"{SWEEP_DIR}={sweep} holds a sweep with other jobs; give this one a folder of its own. "
        f"That one goes on by: {before}"
    )


def _same_sweep(command: str) -> list[str]:
    """A command without how many trials it asks for."""
    return [part for part in shlex.split(command) if key_of(part) != TRIALS]


def forget_job(sweep: Path, number: int) -> None:
    """Remove the record of a job that another one takes up."""
    (sweep / JOBS / f"{number}.json").unlink(missing_ok=True)


def _arm(overrides: Sequence[str]) -> frozenset[str]:
    """What tells a job of a sweep from the others."""
    return frozenset(o for o in overrides if key_of(o) not in OWN_KEYS)


def note_job(
    sweep: Path, number: int, overrides: Sequence[str], status: str, folder: Path | None = None
) -> None:
    """Keep what a job has come to so far.

    Args:
        sweep: Folder of the sweep.
        number: Of the job.
        overrides: Of the job.
        status: ``running``, ``done before``, or the status of its run.
        folder: Where its run is.
    """
    (sweep / JOBS).mkdir(parents=True, exist_ok=True)
    # Relative, so that a sweep may be moved.
    place = {} if folder is None else {"folder": os.path.relpath(folder, sweep)}
    _write(sweep, {"job": number, "overrides": list(overrides), "status": status} | place)


def _write(sweep: Path, record: Mapping[str, Any]) -> None:
    write_text(sweep / JOBS / f"{record['job']}.json", json.dumps(record, indent=1) + "\n")


def read_jobs(sweep: Path) -> list[dict[str, Any]]:
    """The records of a sweep's jobs in their order; empty for a folder that is no sweep."""
    paths = (path for path in (sweep / JOBS).glob("*.json") if path.is_file())
    mend = "delete it, and the command of the sweep writes it again"
    records = [read_json(path, mend) for path in paths]
    return sorted(records, key=lambda record: int(record["job"]))


def is_left(record: Mapping[str, Any]) -> bool:
    """Whether a job still has something to do."""
    return not str(record["status"]).startswith(ENDED)


def continue_command(arguments: Sequence[str], sweep: Path) -> str:
    """What to type in a shell to do what is left of a sweep."""
    kept = [a for a in arguments if key_of(a) != SWEEP_DIR]
    return shlex.join(["homeostat", *kept, assignment(SWEEP_DIR, sweep.resolve())])


def how_to_go_on(sweep: Path) -> str | None:
    """How many jobs of a sweep are left and the command that does them; None if none is."""
    jobs = read_jobs(sweep)
    left = sum(map(is_left, jobs))
    if not left:
        return None
    command = (sweep / COMMAND).read_text(encoding="utf-8").strip()
    return f"{left} of {len(jobs)} jobs are left; those that are done are skipped by\n{command}"
