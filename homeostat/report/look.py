"""``homeostat list`` and ``homeostat show``: runs and sweeps in the terminal, also while they work.

Everything is read from the files of the run folders; nothing is computed, and no torch imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from homeostat.config.resume import read_config
from homeostat.config.rows import kept_rows
from homeostat.config.sweep import STOPPED, read_jobs, run_folders
from homeostat.errors import HomeostatError
from homeostat.files import LOST, alone_in, read_json, taking_values
from homeostat.report.plain import duration, interval, number, visible
from homeostat.report.sentences import headline

BLOCKS = "▁▂▃▄▅▆▇█"
# What is drawn over the updates of a run, in this order.
COURSES = (
    *("reward/valence", "reward/total", "policy/kl_nats_per_token"),
    *("policy/entropy_nats_per_token", "signal/repetition_mean"),
)
# Figures of a stage of steering, and their place in its row.
STAGE = ("coherence", "median_perplexity", "kl_nats_per_token")
WIDTH = 40  # blocks of a course
WORKING, GONE = "at work", "its folder is gone"


def list_runs(folder: Path, console: Console) -> None:
    """A line per run at or below a folder, the newest last.

    Raises:
        HomeostatError: There is none.
    """
    folders = run_folders(folder)
    if not folders:
        raise HomeostatError(f"{folder} holds no run; give a folder that runs lie in.")
    table = Table("run", "status", "trainer", "model", "seed", "what it found", show_lines=False)
    table.columns[0].overflow = table.columns[-1].overflow = "fold"
    for path in sorted(folders, key=lambda one: (one / "config.yaml").stat().st_mtime):
        name = path.relative_to(folder) if path != folder else path.name
        table.add_row(*map(_text, (name, *_line(path))))
    console.print(table)


def _line(path: Path) -> list[object]:
    """Status, trainer, model, seed and finding of a run; of one that cannot be read, why."""
    try:
        with taking_values("it"):
            summary = _summary(path)
            if summary is not None:
                about = [summary[key] for key in ("trainer", "model", "seed")]
            else:  # reading a config takes longer than all of a summary
                config = read_config(path)
                about = [config["trainer"]["name"], config["model"]["name"], config["seed"]]
            return [status_of(path), *about, _first(_found(summary))]
    except HomeostatError as error:
        return ["cannot be read", "", "", "", error]


def show(folder: Path, console: Console) -> None:
    """A run's status, figures and course; of a sweep its jobs.

    Raises:
        HomeostatError: It is neither, or holds what no run writes.
    """
    with taking_values(folder):
        if jobs := read_jobs(folder):
            _show_jobs(folder, jobs, console)
        elif (folder / "config.yaml").is_file():
            _show_run(folder, console)
        else:
            raise HomeostatError(
                f"{folder} is no run folder and no sweep; homeostat list <folder> says what lies "
                "in it."
            )


def status_of(folder: Path) -> str:
    """What has become of a run; one without a summary is at work or was killed."""
    summary = _summary(folder)
    if summary and summary["status"] != "running":
        return str(summary["status"])
    if not folder.is_dir():
        return GONE
    try:
        with alone_in(folder):
            return STOPPED
    except HomeostatError:
        return WORKING


def course(values: Sequence[float], width: int = WIDTH) -> str:
    """Numbers as a line of blocks, lowest to highest; more than ``width`` are averaged in order."""
    groups = [
        values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)
    ]
    means = [sum(g) / len(g) for g in groups if g] if len(values) > width else list(values)
    low, high = min(means), max(means)
    step = (high - low) / (len(BLOCKS) - 1)
    return "".join(BLOCKS[round((value - low) / step) if step else 0] for value in means)


def _show_run(folder: Path, console: Console) -> None:
    config, summary = read_config(folder), _summary(folder)
    rows, stages = _rows(folder / "metrics.jsonl"), _rows(folder / "rounds.jsonl")
    of = config["trainer"]["max_steps"]
    steps = f"{stages[-1]['round']} of {of} rounds" if stages else f"{len(rows)} of {of} steps"
    about = f"{config['trainer']['name']} on {config['model']['name']}, seed {config['seed']}"
    took = f", {duration(summary['wall_s'])}" if summary else ""
    console.print(_text(f"{folder}\n{status_of(folder)}: {about}, {steps}{took}"), soft_wrap=True)
    if found := _found(summary):
        console.print(_text(found), soft_wrap=True)
    if rows and (courses := _courses(rows)).rows:
        console.print(courses)
    if figures := (summary or {}).get("eval"):
        console.print(_figures(figures))
    if stages:
        console.print(_stages(stages))


def _courses(rows: Sequence[Mapping[str, Any]]) -> Table:
    """First, last and the way between of what an update measures."""
    table = Table("over the updates", "first", "course", "last", box=None, pad_edge=False)
    for name in COURSES:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values and not (name == "reward/total" and "reward/valence" in rows[0]):
            table.add_row(name, number(values[0]), course(values), number(values[-1]))
    return table


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("held-out episodes", "base", "trained", "difference", "95% interval")
    for name, figure in figures.items():
        ends = number(figure["before"]), number(figure["after"])
        table.add_row(
            _text(name), *ends, number(figure["diff"], sign=True), interval(figure["ci95"])
        )
    return table


def _stages(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("stage", "trait moved", "95% interval", "coherent", "perplexity", "KL")
    for row in rows:
        moved = (row.get("moved") or {}).get("trait_nats") or {}
        name = f"{row['stage']} {row['round'] or ''}".strip()
        trait = number(moved.get("diff"), sign=True), interval(moved.get("ci95"))
        table.add_row(_text(name), *trait, *(number(row.get(key)) for key in STAGE))
    return table


def _show_jobs(folder: Path, jobs: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table("job", "overrides", "status", "what it found")
    for column in table.columns[1:]:
        column.overflow = "fold"
    for job in jobs:
        place = folder / job["folder"] if "folder" in job else None
        status = status_of(place) if place and job["status"] == "running" else job["status"]
        found = _first(_found(_summary(place))) if place else ""
        table.add_row(*map(_text, (job["job"], " ".join(job["overrides"]), status, found)))
    console.print(table)
    done = sum(str(job["status"]).startswith(("finished", "done")) for job in jobs)
    console.print(_text(f"{done} of {len(jobs)} jobs are done: {folder}"), soft_wrap=True)


def _found(summary: Mapping[str, Any] | None) -> str:
    """What a run that has ended found out, in a sentence; empty for one that has failed."""
    ended = summary is not None and not str(summary["status"]).startswith("failed")
    return headline(dict(summary)) if summary is not None and ended else ""


def _first(text: str) -> str:
    """The first sentence."""
    return text.partition(". ")[0].rstrip(".")


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    found: dict[str, Any] | None = read_json(path, LOST) if path.is_file() else None
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return kept_rows(path, LOST) if path.is_file() else []


def _text(value: object) -> Text:
    """Never markup, whatever a name holds."""
    return Text(visible(str(value)))
