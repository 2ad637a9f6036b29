"""Runs beside each other: comparison.html, .md, .json and .png of some run folders.

A row per arm, a column per evaluation. Each cell has the arm's level and its difference to the
baseline on the same items under the same seeds, with intervals over seeds and items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.config.evals import BASE, COOL, TRAINED
from homeostat.errors import HomeostatError
from homeostat.evals.caveats import Row, mode_of
from homeostat.evals.evaluation import Evaluation
from homeostat.evals.stats import holm
from homeostat.files import taking_values, write_text
from homeostat.report.compare_figures import draw_comparison
from homeostat.report.compare_runs import (
    BESIDE,
    VALENCE,
    VALENCE_KEYS,
    Arm,
    RunRecord,
    find_runs,
    group_arms,
    group_of,
    item_of,
    problems,
)
from homeostat.report.compare_stats import Column, Values, difference, estimate, verdict
from homeostat.report.compare_text import as_html, as_markdown, show
from homeostat.report.console import Console

SAMPLES = 5000
FELT = "felt"  # of the held-out episodes: what users truly felt
UNTRAINED = "base (no training)"


def compare_runs(
    paths: Sequence[Path],
    out: Path,
    console: Console,
    evaluations: Mapping[str, Evaluation],
    baseline: str | None = None,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Compare the runs in some folders; writes comparison.html, .md, .json and .png into ``out``.

    Args:
        paths: Run folders, or folders of sweeps.
        out: Where the files go.
        console: Told what has been found.
        evaluations: Those that are compared, of any that the runs have measured, in this order.
        baseline: Name of the arm that the others are held against; None = the untrained model.
        samples: Bootstrap draws.

    Returns:
        What comparison.json holds.

    Raises:
        HomeostatError: A folder holds no run, the runs do not go together, or there is no such arm.
    """
    with taking_values(", ".join(map(str, paths))):
        arms, spare = group_arms(find_runs(paths, evaluations))
        columns = columns_of(arms, evaluations)
        against = find_baseline(baseline, arms)
        rows = [
            *_untrained(arms, columns, against, samples),
            *(_row(arm, columns, against, samples) for arm in arms),
        ]
        _correct(rows, columns)
        comparison = {
            "baseline": UNTRAINED if against is None else against.name,
            "model": next((run.config["model"]["name"] for run in _runs(arms)), "no model"),
            "samples": samples,
            "columns": [describe_column(column, arms, evaluations) for column in columns],
            "arms": rows,
            "problems": problems(paths, arms, spare),
        }
    out.mkdir(parents=True, exist_ok=True)
    figure = draw_comparison(out, columns, comparison, samples)
    write_text(out / "comparison.json", json.dumps(comparison, indent=1) + "\n")
    write_text(out / "comparison.md", as_markdown(comparison))
    write_text(out / "comparison.html", as_html(comparison, figure))
    show(comparison, console)
    console.say(f"comparison: {out / 'comparison.html'}")
    return comparison


def _runs(arms: Sequence[Arm]) -> list[RunRecord]:
    return [run for arm in arms for run in arm.runs.values()]


def columns_of(arms: Sequence[Arm], evaluations: Mapping[str, Evaluation]) -> list[Column]:
    """A column for every evaluation that any run has measured, held-out episodes last.

    Of these: what users truly felt, which is one quantity whatever the reward, and valence.
    """
    columns = []
    figures = {
        name: (name, evaluation.claim, evaluation.good, evaluation.best_at_0)
        for name, evaluation in evaluations.items()
    }
    figures[FELT] = (VALENCE, "relational_true", 1, False)
    figures[VALENCE] = (VALENCE, "valence", 1, False)
    for name, (file, metric, good, best_at_0) in figures.items():
        groups: dict[str, str] = {}
        values: dict[str, dict[str, Values]] = {}
        for arm in arms:
            values[arm.name] = {}
            for side in (BASE, *BESIDE, TRAINED):
                by_seed = arm.rows(file, side)
                values[arm.name][side] = {
                    seed: {item_of(row): _value(row, metric) for row in rows}
                    for seed, rows in by_seed.items()
                }
                for rows in by_seed.values():
                    groups |= {item_of(row): group_of(row) for row in rows}
        if any(
            value is not None
            for own in values.values()
            for side in own.values()
            for items in side.values()
            for value in items.values()
        ):
            columns.append(Column(name, metric, groups, values, good, best_at_0))
    return columns


def _value(row: Row, metric: str) -> float | None:
    value = row["metrics"].get(metric) if "metrics" in row else row[metric]
    return None if value is None else float(value)


def find_baseline(name: str | None, arms: Sequence[Arm]) -> Arm | None:
    """The arm of that name, or the only one whose name has it in it; None for the untrained model.

    Raises:
        HomeostatError: There is none, or more than one.
    """
    if name in (None, BASE, UNTRAINED):
        return None
    exact = [arm for arm in arms if arm.name == name]
    near = exact or [arm for arm in arms if str(name) in arm.name]
    if len(near) != 1:
        raise HomeostatError(
            f"compare_baseline={name} is {'more than one arm' if near else 'no arm'} of these "
            f"runs; choose one of {'; '.join([BASE, *(arm.name for arm in arms)])}."
        )
    return near[0]


def describe_column(
    column: Column, arms: Sequence[Arm], evaluations: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """What a reader has to know about a column."""
    rows = next(
        (rows for arm in arms for rows in arm.rows(column.name, BASE).values()),
        None,
    )
    evaluation = evaluations.get(column.name)
    return {
        "name": column.name,
        "metric": column.metric,
        "good": column.good,
        "mode": mode_of(rows) if evaluation and rows else None,
        "caveat": evaluation.caveat(rows) if evaluation and rows else None,
    }


def _row(arm: Arm, columns: Sequence[Column], against: Arm | None, samples: int) -> dict[str, Any]:
    """One arm, trained, against the baseline."""
    cells = {}
    for column in columns:
        sides = column.values[arm.name]
        before, note = sides[BASE], None
        if against is not None:
            before = column.values[against.name][TRAINED]
            note = unlike(column, [arm, against])
        if arm is against:
            note = "this is the baseline"
        cells[column.name] = _cell(column, before, sides[TRAINED], note, samples)
    runs = arm.runs.values()
    return {
        "name": arm.name,
        "overrides": list(next(iter(runs)).overrides),
        "seeds": [run.seed for run in runs if run.trained],
        "runs": [str(run.folder) for run in runs],
        "cells": cells,
    }


def _untrained(
    arms: Sequence[Arm], columns: Sequence[Column], against: Arm | None, samples: int
) -> list[dict[str, Any]]:
    """The model before training, and the arms that need none, as the baseline's runs measured them.

    Against the model before training they are as any run has measured them.
    """
    sources = arms if against is None else [against]
    rows = []
    for side in (BASE, *BESIDE):
        measured = [arm for arm in sources if side == BASE or arm.measured(side)]
        for told in dict.fromkeys(arm.told(side) for arm in measured):
            alike = [arm for arm in measured if arm.told(side) == told]
            name = UNTRAINED if side == BASE else name_beside(side, told)
            rows.append({"name": name} | _untrained_row(side, alike, columns, against, samples))
    return rows


def _untrained_row(
    side: str,
    arms: Sequence[Arm],
    columns: Sequence[Column],
    against: Arm | None,
    samples: int,
) -> dict[str, Any]:
    """One arm that needs no training; runs of one seed are averaged."""
    reference = BASE if against is None else TRAINED
    cells = {}
    for column in columns:
        note = unlike(column, arms)
        before, after = (
            {} if note else _merged([column.values[arm.name][own] for arm in arms])
            for own in (reference, side)
        )
        if side == reference:
            note = note or "this is the baseline"
        cells[column.name] = _cell(column, before, after, note, samples)
    seeds = sorted({run.seed for run in _runs(arms)})
    return {"overrides": [], "seeds": seeds, "runs": [], "cells": cells}


def name_beside(side: str, told: Any) -> str:
    """What an arm that needs no training is called."""
    return f"base at {told:g}" if side == COOL else f"prompted base (“{told}”)"


def _merged(values: Sequence[Values]) -> dict[int, dict[str, float | None]]:
    """Mean over some measurements of the same seed and item."""
    measured: dict[int, dict[str, list[float]]] = {}
    for one in values:
        for seed, items in one.items():
            for item, value in items.items():
                if value is not None:
                    measured.setdefault(seed, {}).setdefault(item, []).append(value)
    return {
        seed: {item: sum(repeats) / len(repeats) for item, repeats in items.items()}
        for seed, items in measured.items()
    }


def unlike(column: Column, arms: Sequence[Arm]) -> str | None:
    """Why some arms' figures in a column are not the same quantity; None if they are."""
    if column.name not in (FELT, VALENCE):
        return None
    first, *others = arms
    keys = VALENCE_KEYS if column.name == VALENCE else ()
    differing = [k for k in keys if any(o.config.get(k) != first.config.get(k) for o in others)]
    if any(other.users != first.users for other in others):
        differing.append("the users of their held-out episodes")
    if not differing:
        return None
    what = "their valence" if column.name == VALENCE else "what these felt"
    return f"these arms differ in {', '.join(differing)}, so {what} is not one quantity"


def _cell(
    column: Column, before: Values, after: Values, note: str | None, samples: int
) -> dict[str, Any]:
    level = estimate(after, column.groups)
    change = None if note else difference(before, after, column.groups, samples)
    if level is None and note is None:
        note = "no value could be read" if after else "not measured"
    elif change is None and note is None:
        note = "no seed and item in common with the baseline"
    return {"level": level, "difference": change, "note": note}


def _correct(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    """Add ``p_holm``, over the tests of all arms, and the verdict."""
    by_name = {column.name: column for column in columns}
    tested = {
        f"{number} {name}": (cell, by_name[name])
        for number, row in enumerate(rows)
        for name, cell in row["cells"].items()
        if cell["difference"]
    }
    for key, p in holm({k: cell["difference"]["p"] for k, (cell, _) in tested.items()}).items():
        cell, column = tested[key]
        change, after = cell["difference"], cell["level"]["mean"]
        change["p_holm"] = p
        ends = (after - change["mean"], after) if column.best_at_0 else ()
        change["verdict"] = verdict(change, column.good, ends)
