"""What every arm of steer and heal has measured, in the run folder, through kills and resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homeostat.config.rows import kept_rows
from homeostat.evals.foundations import not_interpretable
from homeostat.evals.selectivity import selectivity
from homeostat.evals.stages import (
    BASE,
    DIARY,
    PROMPTED,
    VIGNETTE,
    Row,
    Stages,
    compare_arms,
    of_kind,
    stage_figures,
    trait_per_nat,
)
from homeostat.files import LOST
from homeostat.report.metrics import write_rows
from homeostat.steering.trainer import STEERED

REVERSED = "reversed"  # the steered student at the opposite dose


class ArmLog:
    """What every arm has measured, kept in the run folder after each stage.

    ``rounds.jsonl`` has a row per arm, ``evals/stages.jsonl`` a row per item,
    ``evals/filter.jsonl`` what fell by dose and gate, ``evals/diary.jsonl`` one question all along,
    ``heal.jsonl`` a row per step of healing.
    """

    NAMES = (
        "rounds.jsonl",
        "heal.jsonl",
        "evals/stages.jsonl",
        "evals/filter.jsonl",
        "evals/diary.jsonl",
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.NAMES}

    def resume(self, done: int) -> bool:
        """Read what an earlier process kept of the ``done`` stages; whether the base is there."""
        for name in self.NAMES:
            path = self.folder / name
            rows = kept_rows(path, LOST) if path.exists() else []
            self.rows[name] = [row for row in rows if stage_number(row) <= done]
        return bool(self.arm(0, PROMPTED))

    def arm(self, round_: int, name: str) -> list[dict[str, Any]]:
        """Rows of one arm."""
        items = self.rows["evals/stages.jsonl"]
        return [r for r in items if (r["round"], r["stage"]) == (round_, name)]

    def arms(self) -> dict[tuple[int, str], list[dict[str, Any]]]:
        """Rows of every arm by round and name."""
        by_arm: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in self.rows["evals/stages.jsonl"]:
            by_arm.setdefault((row["round"], row["stage"]), []).append(row)
        return by_arm

    def add(self, file: str, rows: Sequence[Mapping[str, Any]], round_: int, arm: str) -> None:
        """Keep rows of an arm, with its round and name in front."""
        self.rows[file] += [{"round": round_, "stage": arm, **row} for row in rows]

    def save(self) -> None:
        """Write every file anew, each whole or not at all."""
        for name, rows in self.rows.items():
            if rows:
                write_rows(self.folder / name, rows)


def stage_number(row: Mapping[str, Any]) -> int:
    """How many of the loop's stages were done when this row had been measured."""
    healing = row["stage"] not in (STEERED, REVERSED)
    return 0 if row["round"] == 0 else 2 * row["round"] - 1 + healing


def keep_arm(
    kept: ArmLog,
    rows: Sequence[Row],
    round_: int,
    arm: str,
    metrics: Mapping[str, float],
    stages: Stages,
) -> dict[str, Any]:
    """Add an arm's items and its row in rounds.jsonl; returns that row."""
    entries = [
        {key: row[key] for key in ("question", "reply")} for row in rows if row["kind"] == DIARY
    ]
    kept.add("evals/diary.jsonl", entries, round_, arm)
    rows = [row for row in rows if row["kind"] != DIARY]
    kept.add("evals/stages.jsonl", rows, round_, arm)
    row: dict[str, Any] = {**stage_figures(rows), **metrics}
    base = kept.arm(0, BASE)
    if arm != BASE:
        samples = stages.config.bootstrap_samples
        moved = compare_arms(base, rows, samples)
        row["moved"] = {name: asdict(shift) for name, shift in moved.items()}
        row["trait_per_nat"] = asdict(trait_per_nat(base, rows, samples))
    if arm == REVERSED:
        at_base, dosed, opposite = (
            of_kind(judged, VIGNETTE) for judged in (base, kept.arm(round_, STEERED), rows)
        )
        found = selectivity(at_base, dosed, opposite, stages.persona.foundations)
        caveat = {"caveat": "; ".join(not_interpretable(at_base)) or None} if found else {}
        row["selectivity"] = None if found is None else asdict(found) | caveat
    kept.add("rounds.jsonl", [row], round_, arm)
    return row
