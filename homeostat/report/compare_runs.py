"""Runs from their folders, and the arms that they make up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.config.evals import BASE, COOL, PROMPTED, TRAINED
from homeostat.config.resume import (
    OWN_KEYS,
    flat,
    hash_of,
    is_finished,
    kept_overrides,
    read_config,
)
from homeostat.config.rows import kept_rows
from homeostat.config.sweep import NOT_STARTED, RUNNING, STOPPED, is_left, read_jobs, run_folders
from homeostat.config.upgrade import schema_of
from homeostat.errors import HomeostatError
from homeostat.evals.caveats import Row, mode_of
from homeostat.files import read_json, taking_values

VALENCE = "homeostasis"  # the held-out episodes, whose figure is valence
# Arms that need no training, and the key of ``eval`` that says how each differs from the base.
BESIDE = {COOL: "cool_temperature", PROMPTED: "prompted"}
# What valence depends on besides the model: with other values of these it is another figure.
# And what else than the items an evaluation's rows follow from.
ASKED_BY = ("reply_tokens", "foundations_readout")
VALENCE_KEYS = ("reward", "signals", "bot", "rollout")


@dataclass(frozen=True)
class RunRecord:
    """What one run folder holds.

    Attributes:
        folder: Of the run.
        config: As resolved, plain values.
        overrides: That it was composed from.
        status: Of its summary; ``stopped before it ended`` without one.
        rows: By evaluation and arm.
    """

    folder: Path
    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    status: str
    rows: Mapping[str, Mapping[str, Sequence[Row]]]

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.config["seed"])

    @property
    def trained(self) -> bool:
        """Whether anything was measured after training."""
        return any(TRAINED in arms for arms in self.rows.values())


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed.

    Attributes:
        name: The overrides that tell it from the other arms.
        runs: By seed.
    """

    name: str
    runs: Mapping[int, RunRecord]

    def rows(self, evaluation: str, side: str) -> dict[int, Sequence[Row]]:
        """Rows by seed of ``base`` or ``trained``, of the seeds that have measured them."""
        sides_by_seed = {seed: run.rows.get(evaluation, {}) for seed, run in self.runs.items()}
        return {seed: sides[side] for seed, sides in sides_by_seed.items() if sides.get(side)}

    @property
    def config(self) -> Mapping[str, Any]:
        """Of its first run; the others differ from it in their seed."""
        return next(iter(self.runs.values())).config

    @property
    def users(self) -> Any:
        """Who its held-out episodes were played with."""
        return self.config.get("eval", {}).get("bots") or self.config.get("bot")

    def told(self, side: str) -> Any:
        """How an arm beside it that needs no training differs from the base; None for the base."""
        return self.config["eval"][BESIDE[side]] if side in BESIDE else None

    def measured(self, side: str) -> bool:
        """Whether any of its runs has rows of an arm."""
        return any(side in rows for run in self.runs.values() for rows in run.rows.values())


def find_runs(paths: Sequence[Path], evaluations: Collection[str]) -> list[RunRecord]:
    """Every run in some run folders or folders of sweeps, each once, with these evaluations' rows.

    Raises:
        HomeostatError: A folder is absent or holds no run, or the runs do not go together.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise HomeostatError(f"compare={path}: there is no such folder.")
        folders_below = run_folders(path.resolve())
        if not folders_below and not read_jobs(path):
            raise HomeostatError(
                f"compare={path}: there is no run in it; give run folders, or a sweep's folder."
            )
        folders |= dict.fromkeys(folders_below)
    runs = []
    for folder in folders:
        with taking_values(folder):
            runs.append(read_run(folder, evaluations))
    check_same(runs)
    return runs


def read_run(folder: Path, evaluations: Collection[str]) -> RunRecord:
    """What a run folder holds, of some evaluations."""
    summary = folder / "summary.json"
    status = STOPPED
    if summary.is_file():
        status = str(read_json(summary)["status"])
        if status == "finished" and not is_finished(folder):
            status = STOPPED  # killed while its report was written
    rows: dict[str, dict[str, list[Row]]] = {}
    files = {name: (name,) for name in evaluations} | {VALENCE: (VALENCE, *BESIDE)}
    for name, stems in files.items():
        for path in (folder / "evals" / f"{stem}.jsonl" for stem in stems):
            for row in kept_rows(path) if path.is_file() else ():
                rows.setdefault(name, {}).setdefault(row["arm"], []).append(row)
    config = read_config(folder)
    for key in ("model", "trainer"):
        str(config[key]["name"])  # raises where a later line would, which knows of no folder
    return RunRecord(folder, config, tuple(kept_overrides(folder)), status, rows)


def check_same(runs: Sequence[RunRecord]) -> None:
    """Refuse runs that cannot stand in one table.

    Raises:
        HomeostatError: They have different models, or were asked different items.
    """
    for run in runs[1:]:
        models = [one.config["model"] for one in (runs[0], run)]
        if models[0] != models[1]:
            names = [model["name"] for model in models]
            how = "of models" if names[0] != names[1] else "of the same model set up differently,"
            raise HomeostatError(
                f"{runs[0].folder} and {run.folder} are {how} {names[0]} and {names[1]}; compare "
                "runs of one model at a time."
            )
    first: dict[str, tuple[RunRecord, Any]] = {}
    for run in runs:
        for name, arms in run.rows.items():
            if name == VALENCE or not arms.get(BASE):
                continue
            eval_config = run.config.get("eval", {})
            settings = {key: eval_config.get(key) for key in ASKED_BY}
            items = {item_of(row): group_of(row) for row in arms[BASE]}
            asked = (mode_of(arms[BASE]), items, settings, eval_config.get("files", {}).get(name))
            other, before = first.setdefault(name, (run, asked))
            if asked != before:
                raise HomeostatError(
                    f"{name} was measured on other items, or read in another way, in {run.folder} "
                    f"({len(asked[1])} items, {asked[0]}) than in {other.folder} "
                    f"({len(before[1])} items, {before[0]}); compare runs with the same eval."
                )


def item_of(row: Row) -> str:
    """Name of a row's item; a held-out episode is known by its seed."""
    return str(row["item"] if "item" in row else row["seed"])


def group_of(row: Row) -> str:
    """What a row's item belongs to."""
    return str(row.get("stem", item_of(row)))


def group_arms(runs: Sequence[RunRecord]) -> tuple[list[Arm], list[RunRecord]]:
    """The arms in the order of their first runs, and runs that another one makes superfluous."""
    grouped: dict[str, dict[int, RunRecord]] = {}
    spare: list[RunRecord] = []
    for run in runs:
        arm = grouped.setdefault(hash_of(run.config, without=("seed",)), {})
        other = arm.get(run.seed)
        if other is not None and (other.trained or not run.trained):
            spare.append(run)
            continue
        if other is not None:
            spare.append(other)
        arm[run.seed] = run
    names = arm_names([next(iter(by_seed.values())) for by_seed in grouped.values()])
    return [
        Arm(name, dict(sorted(by_seed.items())))
        for name, by_seed in zip(names, grouped.values(), strict=True)
    ], spare


def arm_names(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each of some runs of different arms: the overrides that not all of them share.

    Where that does not tell two arms apart, the values of the config do.
    """
    if len(runs) == 1:
        return [str(runs[0].config["trainer"]["name"])]
    overrides = [[o for o in run.overrides if _tells(o)] for run in runs]
    shared = set.intersection(*map(set, overrides)) if overrides else set()
    names = [", ".join(o for o in one if o not in shared) or "defaults" for one in overrides]
    values = [flat({k: v for k, v in r.config.items() if _tells(f"{k}=")}) for r in runs]
    for place, name in enumerate(list(names)):
        alike = [i for i, other in enumerate(names) if other == name]
        if len(alike) < 2 or place != alike[0]:
            continue
        keys = [k for k in values[place] if len({repr(values[i].get(k)) for i in alike}) > 1]
        for i in alike:
            told = ", ".join(f"{key}={values[i].get(key)}" for key in keys)
            names[i] = told if name == "defaults" else f"{name}, {told}"
    return names


def _tells(override: str) -> bool:
    """Whether an override can tell arms apart."""
    key = override.lstrip("+~").partition("=")[0]
    return key not in ("seed", *OWN_KEYS) and key.partition(".")[0] not in ("tracker", "hydra")


def problems(
    paths: Sequence[Path], arms: Sequence[Arm], spare: Sequence[RunRecord]
) -> list[dict[str, Any]]:
    """Runs and jobs that did not come to their end, or that add nothing, and why."""
    entries = [_problem(arm.name, run) for arm in arms for run in arm.runs.values()]
    entries += [
        {
            "where": str(run.folder),
            "arm": None,
            "seed": run.seed,
            "status": "left out",
            "reason": "another run has the same config and seed",
        }
        for run in spare
    ]
    known = {Path(entry["where"]).resolve() for entry in entries if entry is not None}
    for path in paths:
        jobs = read_jobs(path)
        shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs[1:] else set()
        for record in filter(is_left, jobs):
            if "folder" not in record or (path / record["folder"]).resolve() not in known:
                entries.append(_missing(path, record, shared))
    return [entry for entry in entries if entry is not None]


def _problem(arm: str, run: RunRecord) -> dict[str, Any] | None:
    kind, _, reason = run.status.partition(": ")
    if run.status == "finished":
        if run.trained:
            return None
        kind, reason = "no figures", "nothing was measured after training"
        trainer = run.config["trainer"]
        if not schema_of("trainer", trainer).learns:
            reason = f"trainer={trainer['name']} trains nothing"
    place = {"where": str(run.folder), "arm": arm, "seed": run.seed}
    return place | {"status": kind, "reason": reason or kind}


def _missing(sweep: Path, record: Mapping[str, Any], shared: set[str]) -> dict[str, Any]:
    """A job of a sweep that has no run folder to speak for it."""
    status = STOPPED if record["status"] == RUNNING else str(record["status"])
    kind, _, reason = status.partition(": ")
    told = [o for o in record["overrides"] if _tells(o) and o not in shared]
    seeds = [o.partition("=")[2] for o in record["overrides"] if o.startswith("seed=")]
    return {
        "where": f"{sweep}, job {record['job']}",
        "arm": ", ".join(told) or None,
        "seed": int(seeds[-1]) if seeds else None,
        "status": "missing" if status == NOT_STARTED else kind,
        "reason": reason or ("it never started" if status == NOT_STARTED else kind),
    }
