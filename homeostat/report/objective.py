"""The one figure that a job of a sweep returns, for a sweeper that optimises it. No torch import.

A key names a figure of the run folder, always how much better or worse than the base it is:

    eval/<figure>                  of the held-out episodes: eval/valence, eval/relational_true
    suite/<evaluation>/<figure>    of an evaluation: suite/answer/sycophancy
    stages/<figure>                of the last healed student whose replies are as often coherent as
                                   the floor asks for: stages/trait_nats, stages/shown_nats
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from homeostat.config.rows import kept_rows
from homeostat.config.run import RunConfig
from homeostat.files import LOST, read_json

DEFAULT = {"reward": "eval/valence", "steering": "stages/trait_nats"}  # by wing


def objective(config: RunConfig, folder: Path) -> float:
    """What ``config.objective`` names, of the run in ``folder``; NaN where it is missing.

    Missing are figures of a run that has not ended, of an arm that was not measured, and of a
    student that never was coherent; a sweeper must not take one for a figure.
    """
    value = _read(config.objective or DEFAULT[config.trainer.wing], folder)
    return math.nan if value is None else float(value)


def _read(key: str, folder: Path) -> float | None:
    summary: dict[str, Any] = read_json(folder / "summary.json", LOST)
    source, _, name = key.partition("/")
    if source == "stages":
        return _moved(folder, name, summary.get("coherence_floor", 0.0))
    figures = summary.get("eval") or {}
    if source == "suite":
        evaluation, _, name = name.partition("/")
        figures = (summary.get("suite") or {}).get(evaluation, {}).get("metrics", {})
    found: float | None = (figures.get(name) or {}).get("diff")
    return found


def _moved(folder: Path, name: str, floor: float) -> float | None:
    path = folder / "rounds.jsonl"
    rows = kept_rows(path, LOST) if path.exists() else []
    coherent = [
        row for row in rows if row["stage"] == "healed" and (row["coherence"] or 0.0) >= floor
    ]
    moved: float | None = (coherent[-1]["moved"].get(name) or {}).get("diff") if coherent else None
    return moved
