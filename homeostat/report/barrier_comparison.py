"""Barriers beside each other: runs of steer and heal that differ in barrier and seed.

Every run is held against its own base on its own items. A figure of an arm is a mean over seeds of
means over items; its interval comes from resampling seeds, and items within each seed. Arms of one
seed share their items and random numbers, so that differences between arms are paired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from homeostat.config.resume import read_config
from homeostat.config.rows import kept_rows
from homeostat.files import read_json, write_text
from homeostat.report.console import interval, number
from homeostat.report.figures import STYLE, save

ARMS = ("nll", "mean", "rmse", "p95", "max", "cvar", "no heal", "prompted")
AGAINST = "mean"
METRICS = ("trait_nats", "coherent", "log_perplexity", "trait_per_nat")
TITLES = {
    "trait_nats": "trait moved, nats/token",
    "coherent": "coherent share",
    "log_perplexity": "log perplexity, change",
    "trait_per_nat": "trait per nat of KL",
}
KIND = {"trait_nats": "trait", "coherent": "reply", "log_perplexity": "reply"}
COLOURS = ("#8a8f98", "#b3402f", "#0b6e99", "#4c9a6a", "#8a6bb1", "#c9a227", "#d1792b", "#24292f")
Items = Mapping[str, Float[np.ndarray, " N"]]


@dataclass(frozen=True)
class Cell:
    """What one seed measured of an arm in a round: one number per item and metric.

    ``coherent`` is the share itself; the others are differences from the seed's own base, but
    ``kl_nats_per_token``, which the base does not have.
    """

    items: Items


def write_comparison(folders: Sequence[Path], out: Path, samples: int = 2000) -> dict[str, Any]:
    """Compare runs; writes comparison.json, comparison.md and comparison.png into ``out``.

    Args:
        folders: Run folders; one that did not finish is listed, and counts as far as it came.
        out: Where the files go.
        samples: Bootstrap resamples.
    """
    runs: list[dict[str, Any]] = []
    cells: dict[tuple[str, int], dict[int, Cell]] = {}
    for folder in sorted(folders):
        config = read_config(folder)
        arm, seed = arm_of(config["trainer"]["barrier"]), int(config["seed"])
        summary = folder / "summary.json"
        status = "not finished"
        if summary.is_file():
            status = read_json(summary)["status"]
        runs.append({"folder": folder.name, "arm": arm, "seed": seed, "status": status})
        for key, cell in read_cells(folder, arm).items():
            cells.setdefault(key, {})[seed] = cell
    comparison: dict[str, Any] = {
        "runs": runs,
        "arms": [
            {"arm": arm, "round": round_, "seeds": sorted(by_seed)}
            | {name: seed_mean(list(by_seed.values()), name, samples) for name in METRICS}
            | {
                f"{name}_against_{AGAINST}": against(
                    by_seed, cells.get((AGAINST, round_), {}), name, samples
                )
                for name in METRICS
                if arm != AGAINST
            }
            for (arm, round_), by_seed in sorted(cells.items(), key=lambda item: _place(*item[0]))
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.json", json.dumps(comparison, indent=1) + "\n")
    write_text(out / "comparison.md", as_markdown(comparison))
    draw_arms(out, comparison["arms"])
    return comparison


def arm_of(barrier: Mapping[str, Any]) -> str:
    """Name of the arm that a barrier's config belongs to."""
    return "nll" if barrier["divergence"] == "none" else str(barrier["aggregate"])


def _place(arm: str, round_: int) -> tuple[int, int]:
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), round_)


def read_cells(folder: Path, arm: str) -> dict[tuple[str, int], Cell]:
    """What a run measured, by arm and round.

    Before any healing all runs of a seed have the same base, prompted base and first steered stage,
    so those arms come from whichever run is read last; later steered stages depend on the barrier
    and stay out.
    """
    path = folder / "evals" / "stages.jsonl"
    if not path.is_file():
        return {}
    stages: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in kept_rows(path):
        stages.setdefault((row["round"], row["stage"]), []).append(row)
    names = {"healed": arm, "prompted": "prompted"}
    cells = {}
    for (round_, stage), rows in stages.items():
        name = "no heal" if (round_, stage) == (1, "steered") else names.get(stage)
        if name is not None:
            cells[name, round_] = _cell(rows, stages[0, "base"])
    return cells


def _cell(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> Cell:
    def column(
        measured: Sequence[Mapping[str, Any]], kind: str, key: str
    ) -> Float[np.ndarray, " N"]:
        return np.array([float(row[key]) for row in measured if row["kind"] == kind])

    items = {
        name: column(rows, kind, name) - (column(base, kind, name) if name != "coherent" else 0)
        for name, kind in KIND.items()
    }
    return Cell(items | {"kl_nats_per_token": column(rows, "reply", "kl_nats_per_token")})


def _value(items: Items, metric: str) -> float:
    if metric == "trait_per_nat":
        cost = items["kl_nats_per_token"].mean()
        return float(items["trait_nats"].mean() / cost) if cost > 1e-6 else float("nan")
    return float(items[metric].mean())


def seed_mean(cells: Sequence[Cell], metric: str, samples: int) -> dict[str, Any] | None:
    """Mean over seeds and its 95% interval; None where a seed cannot say."""
    return _resampled(
        [(cell,) for cell in cells], lambda single: _value(single[0], metric), samples
    )


def against(
    arm: Mapping[int, Cell], other: Mapping[int, Cell], metric: str, samples: int
) -> dict[str, Any] | None:
    """Paired difference of two arms over the seeds that both have; None without any."""
    pairs = [(arm[seed], other[seed]) for seed in sorted(arm.keys() & other.keys())]
    return _resampled(
        pairs, lambda both: _value(both[0], metric) - _value(both[1], metric), samples
    )


def _resampled(
    seeds: Sequence[tuple[Cell, ...]],
    value: Callable[[Sequence[Items]], float],
    samples: int,
) -> dict[str, Any] | None:
    """Mean of ``value`` over seeds; seeds, and items within each, are resampled together."""
    if not seeds:
        return None
    mean = float(np.mean([value([cell.items for cell in cells]) for cells in seeds]))
    rng = np.random.default_rng(0)
    draws: list[float] = []
    for _ in range(samples):
        chosen = rng.integers(len(seeds), size=len(seeds))
        draws.append(float(np.mean([value(_draw(seeds[i], rng)) for i in chosen])))
    if not np.isfinite([mean, *draws]).all():
        return None
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": mean, "ci95": [float(low), float(high)], "n_seeds": len(seeds)}


def _draw(cells: Sequence[Cell], rng: np.random.Generator) -> list[Items]:
    """The items of one seed resampled, the same ones for every arm."""
    first = cells[0].items
    replies = rng.integers(len(first["coherent"]), size=len(first["coherent"]))
    traits = rng.integers(len(first["trait_nats"]), size=len(first["trait_nats"]))
    return [
        {
            name: values[traits if name == "trait_nats" else replies]
            for name, values in cell.items.items()
        }
        for cell in cells
    ]


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The table that people read, and which runs it is made of."""
    lines = _table(comparison["arms"], METRICS)
    differences = [f"{name}_against_{AGAINST}" for name in METRICS]
    compared = [row for row in comparison["arms"] if row.get(differences[0])]
    if compared:
        lines += ["", f"Less {AGAINST}, seed by seed and item by item:", ""]
        lines += _table(compared, differences)
    lines += ["", "| run | arm | seed | status |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {r['folder']} | {r['arm']} | {r['seed']} | {r['status']} |" for r in comparison["runs"]
    ]
    return "\n".join(lines) + "\n"


def _table(arms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """A row per arm and round; ``names`` are the metrics, or their differences."""
    return [
        "| arm | round | seeds | " + " | ".join(TITLES.values()) + " |",
        "| --- " * (3 + len(names)) + "|",
        *(
            f"| {row['arm']} | {row['round']} | {len(row['seeds'])} | "
            + " | ".join(_show(row.get(name)) for name in names)
            + " |"
            for row in arms
        ),
    ]


def _show(estimate: Mapping[str, Any] | None) -> str:
    return (
        "—"
        if estimate is None
        else f"{number(estimate['mean'], sign=True)} {interval(estimate['ci95'])}"
    )


def draw_arms(folder: Path, arms: Sequence[Mapping[str, Any]]) -> Path:
    """Coherence by round, and where every arm ends: trait against coherence."""
    names = [name for name in ARMS if any(row["arm"] == name for row in arms)]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.4))
        for number_, name in enumerate(names):
            rows = [row for row in arms if row["arm"] == name]
            colour = COLOURS[ARMS.index(name)]
            if name in ("no heal", "prompted"):
                left.axhline(rows[-1]["coherent"]["mean"], color=colour, lw=1, ls=":")
            else:
                x = np.array([row["round"] for row in rows]) + 0.05 * (number_ - 2)
                left.plot(x, [row["coherent"]["mean"] for row in rows], "-o", color=colour, ms=4)
                for at, row in zip(x, rows, strict=True):
                    left.plot([at, at], row["coherent"]["ci95"], color=colour, lw=1, alpha=0.6)
            _end(right, rows[-1], name, colour)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set(xlabel="round", ylabel="coherent share", title="Coherence, healed, by round")
        right.set(
            xlabel="trait moved, nats per token", ylabel="coherent share", title="After the last"
        )
        right.legend(frameon=False, fontsize=7)
        figure.tight_layout()
        return save(figure, folder / "comparison.png")


def _end(axes: Axes, row: Mapping[str, Any], name: str, colour: str) -> None:
    trait, coherent = row["trait_nats"], row["coherent"]
    axes.plot(trait["ci95"], [coherent["mean"]] * 2, color=colour, lw=1, alpha=0.6)
    axes.plot([trait["mean"]] * 2, coherent["ci95"], color=colour, lw=1, alpha=0.6)
    axes.plot(trait["mean"], coherent["mean"], "o", color=colour, ms=5, label=name)
