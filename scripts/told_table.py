"""What `experiment=told` has found: every arm less its own base, over seeds.

python scripts/told_table.py SWEEP [SWEEP ...] [--json]

A row per teacher and arm; arms of a round are those of the last. Means over seeds with a t
interval, seeds being the unit; with one seed its own value. `left` is the share of the healed
student's movement in given pairs that an ablated or contrary student keeps, each beside the base
under the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from arms_table import finished, over_seeds

MOVED = {
    "pairs": "trait_nats",
    "own replies": "shown_nats",
    "as a shift": "shown_shift",
    "uninvited": "shown_neutral_nats",
    "fifth turn": "shown_last_turn_nats",
}
LEVELS = {"coherent": "coherence", "KL": "kl_nats_per_token"}
# An arm of the student's, and the base's that it is held against.
BESIDE = {"ablated": "base ablated", "contrary": "base, contrary"}


def read(folder: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """The teacher of a run, and its figures by arm."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    last = max(row["round"] for row in rows)
    arms = {name_of(row, last): row for row in rows if row["round"] in (0, last)}
    figures = {name: arm_figures(row) for name, row in arms.items()}
    healed = arms["healed"]["moved"]["trait_nats"]["diff"]
    for name, other in BESIDE.items():
        if name in arms and other in arms:
            kept = arms[name]["trait_nats"] - arms[other]["trait_nats"]
            figures[name]["left"] = kept / healed
    return config["trainer"]["teacher"], figures


def name_of(row: Mapping[str, Any], last: int) -> str:
    """An arm's name; what the base is told stands apart from what the student is."""
    student = row["round"] == last or row["stage"] != "contrary"
    return str(row["stage"]) if student else f"base, {row['stage']}"


def arm_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """How far an arm has moved from the base, and where it is; without what is missing."""
    moved = {name: row.get("moved", {}).get(key, {}).get("diff") for name, key in MOVED.items()}
    levels = {name: row[key] for name, key in LEVELS.items()}
    return {name: value for name, value in (moved | levels).items() if value is not None}


def table(sweeps: Sequence[Path]) -> list[dict[str, Any]]:
    """A row per teacher and arm: every figure's mean over seeds with its interval."""
    by_arm: dict[tuple[str, str], dict[str, list[float]]] = {}
    for path, _ in finished(sweeps):
        teacher, figures = read(path.parent)
        for arm, values in figures.items():
            columns = by_arm.setdefault((teacher, arm), {})
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    return [
        {"teacher": teacher, "arm": arm}
        | {name: over_seeds(values) for name, values in columns.items()}
        for (teacher, arm), columns in by_arm.items()
    ]


def cell(figure: Mapping[str, Any]) -> str:
    """Mean and interval."""
    ends = "" if figure["ci95"] is None else " [{:+.3f}, {:+.3f}]".format(*figure["ci95"])
    return f"{figure['mean']:+.3f}{ends}"


def main() -> None:
    """Print a Markdown table, or one JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = table(options.sweeps)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    columns = (*MOVED, *LEVELS, "left")
    print(f"| teacher | arm | {' | '.join(columns)} |")
    print("|" + " --- |" * (len(columns) + 2))
    for row in rows:
        cells = (cell(row[name]) if name in row else "" for name in columns)
        print(f"| {row['teacher']} | {row['arm']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
