"""What `experiment=told` has found: every arm less its own base, over seeds, and what beats what.

python scripts/told_table.py SWEEP [SWEEP ...] [--json]
python scripts/told_table.py --items RUN [--json]

A row per teacher and arm; arms of a round are those of the last one that was healed. Means over
seeds with a t interval, seeds being the unit; with one seed its own value. Pairs of arms are
compared seed by seed. Runs that are not finished are named and left out. `left` is how much of the
trait a healed student still has over the base when both are ablated, or told the opposite, as a
share of how much it has over it otherwise: of means over seeds. What the run's evaluations say of
the student and of the base that is told, each less the base, stands in a table of its own. With
`--items` the arms of one run are compared over its items instead, with bootstrap intervals, and
what shows is given by turn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from arms_table import over_seeds

from homeostat.evals.stages import compare_arms

MOVED = {
    "pairs": "trait_nats",
    "own replies": "shown_nats",
    "as a shift": "shown_shift",
    "uninvited": "shown_neutral_nats",
    "last turn": "shown_last_turn_nats",
}
LEVELS = {"coherent": "coherence", "KL": "kl_nats_per_token"}
SHOWS = (*MOVED, *LEVELS)
KEYS = ("teacher", "arm", "seeds")
# What an evaluation says beside its claim that is of interest here.
CONTRASTS = {"false_beliefs": ("sad", "sad_minus_neutral")}
TOLD = "base, "  # before what the base is told
# Of which arm is held against which: of the student of one teacher, and of two.
PAIRS = (
    (("steered", "healed"), ("steered", f"{TOLD}prompted")),
    (("steered", "healed"), ("steered", f"{TOLD}examples")),
    (("steered", "healed"), ("prompted", "healed")),
)
# Arms of one run that are compared over its items.
WITHIN = (
    (f"{TOLD}prompted", "base"),
    (f"{TOLD}examples", "base"),
    ("healed", "base"),
    ("healed", f"{TOLD}prompted"),
    ("healed", f"{TOLD}examples"),
    ("contrary", f"{TOLD}contrary"),
    ("ablated", "base ablated"),
)
SAMPLES = 5000  # of the bootstrap over items
# An arm of the student's, and the base's that it is held against.
BESIDE = {"ablated": "base ablated", "contrary": f"{TOLD}contrary"}
Arm = tuple[str, str]  # teacher, arm
Runs = dict[Arm, dict[int, dict[str, float]]]  # figures by arm and seed


def read_runs(sweeps: Sequence[Path]) -> tuple[Runs, list[str]]:
    """Every finished run's figures by arm and seed, and what was left out."""
    runs: Runs = {}
    left_out = []
    for path in sorted(p for sweep in sweeps for p in sweep.glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["status"] != "finished":
            left_out.append(f"{path.parent}: {summary['status']}")
            continue
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        for arm, figures in read(path.parent, summary).items():
            by_seed = runs.setdefault((config["trainer"]["teacher"], arm), {})
            if summary["seed"] in by_seed:
                sys.exit(f"seed {summary['seed']} of {arm} is there twice, the second in {path}.")
            by_seed[summary["seed"]] = figures
    return runs, left_out


def read(folder: Path, summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """A run's figures by arm."""
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    last = max(row["round"] for row in rows if row["stage"] == "healed")
    arms: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["round"] in (0, last) or row["stage"] == "base ablated":
            told = not row["round"] and row["stage"] != "base"
            arms[f"{TOLD}{row['stage']}" if told else row["stage"]] = row
    figures = {name: figures_of(row) for name, row in arms.items()}
    for name, compared in summary["suite"].items():
        beside = {"healed": compared, f"{TOLD}prompted": compared.get("prompted")}
        for arm, found in beside.items():
            if found is not None and arm in figures:
                figures[arm] |= evaluated(name, compared["claim"], found["metrics"])
    return figures


def evaluated(name: str, claim: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation's claim and contrasts, less the base's; without what is missing."""
    keys = {name: claim} | {f"{name}/{key}": key for key in CONTRASTS.get(name, ())}
    found = {said: metrics[key]["diff"] for said, key in keys.items()}
    return {said: value for said, value in found.items() if value is not None}


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """How far an arm has moved from the base, and where it is; without what is missing."""
    moved = {name: row.get("moved", {}).get(key, {}).get("diff") for name, key in MOVED.items()}
    levels = {name: row[key] for name, key in LEVELS.items()}
    return {name: value for name, value in (moved | levels).items() if value is not None}


def table(runs: Runs) -> list[dict[str, Any]]:
    """A row per teacher and arm: every figure's mean over seeds with its interval."""
    return [
        {"teacher": arm[0], "arm": arm[1], "seeds": sorted(by_seed)}
        | {
            name: over_seeds([by_seed[seed][name] for seed in sorted(by_seed)])
            for name in in_all(list(by_seed.values()))
        }
        for arm, by_seed in runs.items()
    ]


def in_all(found: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of the figures that every one has, in the first one's order."""
    return [name for name in found[0] if all(name in figures for figures in found)]


def compare(runs: Runs, pairs: Sequence[tuple[Arm, Arm]] = PAIRS) -> list[dict[str, Any]]:
    """For each pair the differences seed by seed, of the seeds that both have."""
    rows = []
    for one, other in pairs:
        seeds = sorted(runs.get(one, {}).keys() & runs.get(other, {}).keys())
        if not seeds:
            continue
        mine, theirs = ([runs[arm][seed] for seed in seeds] for arm in (one, other))
        differences = {
            name: over_seeds([a[name] - b[name] for a, b in zip(mine, theirs, strict=True)])
            for name in in_all([*mine, *theirs])
        }
        said = f"{' '.join(one)} less {' '.join(other)}"
        rows.append({"teacher": "", "arm": said, "seeds": seeds} | differences)
    return rows


def what_is_left(runs: Runs) -> list[dict[str, Any]]:
    """The share of the healed student's lead in given pairs that is left, by teacher and arm."""
    rows = []
    for (teacher, name), by_seed in runs.items():
        if name not in BESIDE:
            continue
        seeds = sorted(by_seed)

        def pairs(arm: str, teacher: str = teacher, seeds: list[int] = seeds) -> list[float]:
            return [runs[teacher, arm][seed]["pairs"] for seed in seeds]

        lead = np.subtract(pairs(name), pairs(BESIDE[name]))
        whole = over_seeds(pairs("healed"))
        rows.append(
            {
                "teacher": teacher,
                "arm": name,
                "seeds": seeds,
                "lead": over_seeds(lead.tolist()),
                "without": whole,
                "left": float(lead.mean()) / whole["mean"],
            }
        )
    return rows


def over_items(folder: Path) -> dict[str, Any]:
    """Paired differences between arms of one run, and the mean of what shows in each turn."""
    lines = (folder / "evals" / "stages.jsonl").read_text(encoding="utf-8").splitlines()
    by_arm: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in map(json.loads, lines):
        by_arm.setdefault((row["round"], row["stage"]), []).append(row)
    last = max(number for number, stage in by_arm if stage == "healed")
    arms = {TOLD + stage: rows for (number, stage), rows in by_arm.items() if not number}
    arms["base"] = arms.pop(f"{TOLD}base")
    arms |= {stage: rows for (number, stage), rows in by_arm.items() if number == last}
    arms |= {stage: rows for (_, stage), rows in by_arm.items() if stage == "base ablated"}
    differences = {
        f"{one} less {other}": {
            name: asdict(estimate)
            for name, estimate in compare_arms(arms[other], arms[one], SAMPLES).items()
            if estimate.diff is not None
        }
        for one, other in WITHIN
        if one in arms and other in arms
    }
    turns = {
        arm: np.nanmean(np.array(talks, dtype=float), axis=0).tolist()
        for arm, rows in arms.items()
        if (talks := [row["by_turn"] for row in rows if row["kind"] == "talk"])
    }
    return {"round": last, "differences": differences, "by_turn": turns}


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Arms and their figures as a Markdown table; nothing where there are no columns."""
    if not columns:
        return
    print(f"\n| teacher | arm | seeds | {' | '.join(columns)} |")
    print("|" + " --- |" * (len(columns) + 3))
    for row in rows:
        cells = (cell(row[name]) if name in row else "" for name in columns)
        print(f"| {row['teacher']} | {row['arm']} | {len(row['seeds'])} | {' | '.join(cells)} |")


def print_items(found: Mapping[str, Any]) -> None:
    """The comparison of one run as Markdown tables."""
    for said, figures in found["differences"].items():
        print(f"\n{said}, round {found['round']}\n")
        print("| figure | difference | items |\n| --- | --- | --- |")
        for name, estimate in figures.items():
            print(f"| {name} | {cell(estimate | {'mean': estimate['diff']})} | {estimate['n']} |")
    print()
    for arm, turns in found["by_turn"].items():
        print(f"{arm}, by turn: {', '.join(f'{shown:+.3f}' for shown in turns)}")


def cell(figure: Mapping[str, Any]) -> str:
    """Mean and interval."""
    ends = "" if figure["ci95"] is None else " [{:+.3f}, {:+.3f}]".format(*figure["ci95"])
    return f"{figure['mean']:+.3f}{ends}"


def main() -> None:
    """Print Markdown tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="*", type=Path)
    parser.add_argument("--items", type=Path, help="one run, whose arms are compared over items")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.items is not None:
        found = over_items(options.items)
        print(json.dumps(found, indent=1)) if options.json else print_items(found)
        return
    runs, left_out = read_runs(options.sweeps)
    rows, left = [*table(runs), *compare(runs)], what_is_left(runs)
    if options.json:
        print(json.dumps({"arms": rows, "left": left, "left_out": left_out}, indent=1))
        return
    print_table(rows, SHOWS)
    others = list(dict.fromkeys(key for row in rows for key in row if key not in (*KEYS, *SHOWS)))
    print_table([row for row in rows if not row.keys().isdisjoint(others)], others)
    for row in left:
        print(
            f"\n{row['teacher']}, {row['arm']}: over the base under the same {cell(row['lead'])}, "
            f"otherwise {cell(row['without'])}: {row['left']:.2f} is left"
        )
    print(*(f"\nleft out: {run}" for run in left_out), sep="")


if __name__ == "__main__":
    main()
