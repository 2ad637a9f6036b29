"""Barriers beside each other: runs of steer and heal that differ in barrier and seed.

Every run is held against its own base on the same items. A figure of an arm is a mean over seeds of
means over items; its interval counts both, crossed. Arms of one seed share their random numbers,
too, so that differences between arms are paired. What arms are compared at is how often their
barriers really fired: unless that is alike, the comparison says that it is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.resume import read_config
from homeostat.config.rows import kept_rows
from homeostat.evals.stats import share_interval, t_interval, wilson
from homeostat.files import read_json, write_text
from homeostat.report.barrier_shown import AGAINST, METRICS, UNHEALED, as_markdown, draw_arms
from homeostat.report.compare_stats import Values, differences, estimate, over_seeds, table

ARMS = ("nll", "mean", "rmse", "p95", "max", "cvar", "no heal", "prompted")
# What may tell arms of one aggregate apart.
APART = (
    *("divergence", "reference", "tau", "firing_rate", "coef", "coef_power"),
    *("control", "dual_lr", "rate_lr"),
)
KIND = {
    "trait_nats": "trait",
    "shown_nats": "shown",
    "coherent": "reply",
    "log_perplexity": "reply",
}
PRICE = "kl_nats_per_token"
ALIKE = 0.05  # between the arms' shares of steps in which the barrier fired
Items = Mapping[str, Mapping[str, float]]  # by metric and item


@dataclass(frozen=True)
class Cell:
    """What one seed measured of an arm in a round: one number per item and metric.

    ``coherent`` is the share itself; the others are differences from the seed's own base, but
    ``kl_nats_per_token``, which the base does not have.
    """

    items: Items


def write_comparison(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Compare runs; writes comparison.json, comparison.md and comparison.png into ``out``.

    Args:
        folders: Run folders; one that did not finish is listed, and counts as far as it came, one
            whose arm and seed another before it has is listed and left out.
        out: Where the files go.
    """
    runs: list[dict[str, Any]] = []
    cells: dict[tuple[str, int], dict[int, Cell]] = {}
    fired: dict[tuple[str, int], dict[int, float]] = {}
    configs = {folder: read_config(folder) for folder in sorted(folders)}
    names = arm_names([config["trainer"]["barrier"] for config in configs.values()])
    for arm, (folder, config) in zip(names, configs.items(), strict=True):
        seed = int(config["seed"])
        summary = folder / "summary.json"
        status = "not finished"
        if summary.is_file():
            status = read_json(summary)["status"]
        if any((run["arm"], run["seed"]) == (arm, seed) for run in runs):
            status = f"left out, a second run of its arm and seed ({status})"
        runs.append({"folder": folder.name, "arm": arm, "seed": seed, "status": status})
        if status.startswith("left out"):
            continue
        for key, cell in read_cells(folder, arm).items():
            cells.setdefault(key, {})[seed] = cell
        for round_, rate in read_firing(folder).items():
            fired.setdefault((arm, round_), {})[seed] = rate
    firing = [
        {"arm": arm, "round": round_, "rate": float(np.mean(list(by_seed.values())))}
        | {"by_seed": {str(seed): by_seed[seed] for seed in sorted(by_seed)}}
        for (arm, round_), by_seed in sorted(fired.items(), key=lambda item: _place(*item[0]))
    ]
    comparison: dict[str, Any] = {
        "runs": runs,
        "firing": firing,
        "firing_over_rounds": rates_over_rounds(firing),
        "equal_firing": equal_firing(firing),
        "arms": [
            {"arm": arm, "round": round_, "seeds": sorted(by_seed)}
            | figures(arm, by_seed, cells.get((AGAINST, round_), {}))
            for (arm, round_), by_seed in sorted(cells.items(), key=lambda item: _place(*item[0]))
        ],
        "final": final_figures(cells),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.json", json.dumps(comparison, indent=1) + "\n")
    write_text(out / "comparison.md", as_markdown(comparison))
    draw_arms(out, comparison["arms"])
    return comparison


def figures(arm: str, by_seed: Mapping[int, Cell], other: Mapping[int, Cell]) -> dict[str, Any]:
    """Every metric of an arm, and unless it is the mean's own, its difference from the mean's."""
    against_other = {
        f"{name}_against_{AGAINST}": against(by_seed, other, name)
        for name in METRICS
        if arm != AGAINST
    }
    return {name: seed_mean(by_seed, name) for name in METRICS} | against_other


def final_figures(cells: Mapping[tuple[str, int], Mapping[int, Cell]]) -> list[dict[str, Any]]:
    """Every healed arm after the last round that each of its runs has come to."""
    last: dict[str, dict[int, tuple[int, Cell]]] = {}
    for (arm, round_), by_seed in sorted(cells.items(), key=lambda item: _place(*item[0])):
        if arm in UNHEALED:
            continue
        for seed, cell in by_seed.items():
            last.setdefault(arm, {})[seed] = (round_, cell)
    ended = {arm: {s: cell for s, (_, cell) in by.items()} for arm, by in last.items()}
    return [
        {"arm": arm, "rounds": {str(seed): last[arm][seed][0] for seed in sorted(by_seed)}}
        | figures(arm, by_seed, ended.get(AGAINST, {}))
        for arm, by_seed in ended.items()
    ]


def arm_names(barriers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each barrier's arm: its aggregate, and what else tells arms of that aggregate apart."""
    kinds = ["nll" if b["divergence"] == "none" else str(b["aggregate"]) for b in barriers]
    names = []
    for kind, barrier in zip(kinds, barriers, strict=True):
        alike = [other for name, other in zip(kinds, barriers, strict=True) if name == kind]
        apart = [key for key in APART if len({str(other.get(key)) for other in alike}) > 1]
        words = [f"{key} {barrier.get(key)}" for key in apart if kind != "nll"]
        names.append(", ".join([kind, *words]))
    return names


def _place(arm: str, round_: int) -> tuple[int, str, int]:
    kind = arm.partition(", ")[0]
    return (ARMS.index(kind) if kind in ARMS else len(ARMS), arm, round_)


def read_firing(folder: Path) -> dict[int, float]:
    """Of each round of a run the share of its optimiser steps in which the barrier fired."""
    path = folder / "rounds.jsonl"
    rows = kept_rows(path) if path.is_file() else []
    fired = [row for row in rows if row.get("heal/fired") is not None]  # other stages heal nothing
    return {row["round"]: float(row["heal/fired"]) for row in fired}


def rates_over_rounds(firing: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every arm's rate over the rounds that all arms have reached, each round counting once."""
    by_arm: dict[str, dict[int, float]] = {}
    for row in firing:
        by_arm.setdefault(row["arm"], {})[row["round"]] = row["rate"]
    common = set.intersection(*(set(rates) for rates in by_arm.values())) if by_arm else set()
    return {
        arm: float(np.mean([rates[n] for n in sorted(common)]))
        for arm, rates in by_arm.items()
        if common
    }


def equal_firing(firing: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the arms' rates over all rounds lie within 0.05 of each other; None below two arms.

    Arms whose barriers fired unequally often differ in how tight they were, whatever they are made
    of. A single round has few steps, so that its rate is coarse.
    """
    rates = list(rates_over_rounds(firing).values())
    return max(rates) - min(rates) <= ALIKE if len(rates) > 1 else None


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
    def column(measured: Sequence[Mapping[str, Any]], kind: str, key: str) -> dict[str, float]:
        rows = [row for row in measured if row["kind"] == kind and row[key] is not None]
        return {row["item"]: float(row[key]) for row in rows}

    items = {name: column(rows, kind, name) for name, kind in KIND.items()}
    for name, kind in KIND.items():
        if name != "coherent":
            before = column(base, kind, name)
            both = items[name].keys() & before.keys()
            items[name] = {
                item: value - before[item] for item, value in items[name].items() if item in both
            }
    return Cell(items | {PRICE: column(rows, "reply", PRICE)})


def _per_nat(items: Items) -> float:
    """Trait moved per nat of KL; NaN where there is no KL."""
    trait, cost = (float(np.mean(list(items[n].values()))) for n in ("trait_nats", PRICE))
    return trait / cost if cost > 1e-6 else float("nan")


def seed_mean(cells: Mapping[int, Cell], metric: str) -> dict[str, Any] | None:
    """Mean over seeds and items and its 95% interval; None where a seed cannot say.

    Seeds and items are crossed (`compare_stats.crossed_interval`), since every seed is measured on
    the same items. Where none of them differs a share has Wilson's interval over items, or
    Newcombe's of a difference. The trait per nat is a ratio, and has a t interval over seeds.
    """
    if metric == "trait_per_nat":
        return _ratios([_per_nat(cell.items) for cell in cells.values()])
    values = {seed: cell.items[metric] for seed, cell in cells.items()}
    found = _crossed(values)
    if found is not None and found["ci95"] is None and metric == "coherent":
        shares = _by_item(values)
        found["ci95"] = list(wilson(int(shares.sum()), len(shares)))
    return _within(found, 0.0, 1.0) if metric == "coherent" else found


def against(
    arm: Mapping[int, Cell], other: Mapping[int, Cell], metric: str
) -> dict[str, Any] | None:
    """Paired difference of two arms over the seeds that both have; None without any."""
    seeds = sorted(arm.keys() & other.keys())
    if metric == "trait_per_nat":
        return _ratios([_per_nat(arm[s].items) - _per_nat(other[s].items) for s in seeds])
    before, after = ({s: one[s].items[metric] for s in seeds} for one in (other, arm))
    found = _crossed(differences(before, after))
    if found is not None and found["ci95"] is None and metric == "coherent":
        ends = share_interval(_by_item(before), _by_item(after))
        found["ci95"] = None if ends is None else list(ends)
    return _within(found, -1.0, 1.0) if metric == "coherent" else found


def _within(found: dict[str, Any] | None, low: float, high: float) -> dict[str, Any] | None:
    """The interval of a share, or of a difference of two, without what neither can be."""
    if found is not None and found["ci95"] is not None:
        found["ci95"] = [min(max(end, low), high) for end in found["ci95"]]
    return found


def _by_item(values: Values) -> Float[np.ndarray, " G"]:
    """Mean over seeds of every item."""
    return over_seeds(table(values, {item: item for row in values.values() for item in row}))


def _crossed(values: Values) -> dict[str, Any] | None:
    """Mean over seeds and items, with what it rests on."""
    return estimate(values, {item: item for by_item in values.values() for item in by_item})


def _ratios(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean over seeds of a figure that is no mean over items."""
    if not values or not np.isfinite(values).all():
        return None
    ends = t_interval(np.array(values))
    ci95 = None if ends is None else list(ends)
    return {"mean": float(np.mean(values)), "ci95": ci95, "n_seeds": len(values)}
