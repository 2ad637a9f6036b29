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
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from homeostat.config.resume import read_config
from homeostat.config.rows import kept_rows
from homeostat.evals.stats import share_interval, t_interval, wilson
from homeostat.files import read_json, write_text
from homeostat.report.compare_stats import Values, differences, estimate, over_seeds, table
from homeostat.report.figures import STYLE, save
from homeostat.report.plain import interval, number

ARMS = ("nll", "mean", "rmse", "p95", "max", "cvar", "no heal", "prompted")
UNHEALED = ("no heal", "prompted")
AGAINST = "mean"
# What may tell arms of one aggregate apart.
APART = (
    *("divergence", "reference", "tau", "firing_rate", "coef", "coef_power"),
    *("control", "dual_lr", "rate_lr"),
)
METRICS = ("trait_nats", "shown_nats", "coherent", "log_perplexity", "trait_per_nat")
TITLES = {
    "trait_nats": "trait moved, nats/token",
    "shown_nats": "shows more in replies, nats/token",
    "coherent": "coherent share",
    "log_perplexity": "log perplexity, change",
    "trait_per_nat": "trait per nat of KL",
}
KIND = {
    "trait_nats": "trait",
    "shown_nats": "shown",
    "coherent": "reply",
    "log_perplexity": "reply",
}
COLOURS = ("#8a8f98", "#b3402f", "#0b6e99", "#4c9a6a", "#8a6bb1", "#c9a227", "#d1792b", "#24292f")
PRICE = "kl_nats_per_token"
ALIKE = 0.05  # between the arms' shares of steps in which the barrier fired
FIRED = {
    True: "The barriers fired equally often over all rounds, within 0.05.",
    False: "**No comparison of barriers**: they did not fire equally often.",
    None: "How often the barrier fired:",
}
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


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The table that people read, and which runs it is made of."""
    lines = _table(comparison["arms"], METRICS)
    differences = [f"{name}_against_{AGAINST}" for name in METRICS]
    compared = [row for row in comparison["arms"] if row.get(differences[0])]
    if compared:
        lines += ["", f"Less {AGAINST}, seed by seed and item by item:", ""]
        lines += _table(compared, differences)
    if comparison["final"]:
        lines += ["", "After the last round that each run has come to:", ""]
        final = [
            row | {"round": _span(row["rounds"]), "seeds": row["rounds"]}
            for row in comparison["final"]
        ]
        lines += _table(final, METRICS)
        lines += ["", f"Less {AGAINST}:", ""]
        lines += _table([row for row in final if row.get(differences[0])], differences)
    if comparison["firing"]:
        lines += ["", FIRED[comparison["equal_firing"]], ""]
        lines += ["| barrier | round | fired, share of steps | by seed |", "| --- " * 4 + "|"]
        lines += [
            f"| {row['arm']} | {row['round']} | {row['rate']:.2f} | "
            + ", ".join(f"{rate:.2f}" for rate in row["by_seed"].values())
            + " |"
            for row in comparison["firing"]
        ]
        lines += [
            f"| {arm} | all | {rate:.2f} | |"
            for arm, rate in comparison["firing_over_rounds"].items()
        ]
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


def _span(rounds: Mapping[str, int]) -> str:
    """The rounds that runs have ended at: one, or from the first to the last."""
    first, last = min(rounds.values()), max(rounds.values())
    return str(first) if first == last else f"{first} to {last}"


def _show(estimate: Mapping[str, Any] | None) -> str:
    return (
        "—"
        if estimate is None
        else f"{number(estimate['mean'], sign=True)} {interval(estimate['ci95'])}"
    )


def draw_arms(folder: Path, arms: Sequence[Mapping[str, Any]]) -> Path:
    """Coherence by round, and where every arm ends: trait against coherence."""
    names = list(dict.fromkeys(row["arm"] for row in arms))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.4))
        for number_, name in enumerate(names):
            rows = [row for row in arms if row["arm"] == name]
            colour = COLOURS[number_ % len(COLOURS)]
            if name in UNHEALED:
                left.axhline(rows[-1]["coherent"]["mean"], color=colour, lw=1, ls=":")
            else:
                x = np.array([row["round"] for row in rows]) + 0.05 * (number_ - 2)
                left.plot(x, [row["coherent"]["mean"] for row in rows], "-o", color=colour, ms=4)
                for at, row in zip(x, rows, strict=True):
                    left.plot([at, at], _ends(row["coherent"]), color=colour, lw=1, alpha=0.6)
            _end(right, rows[-1], name, colour)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        share: dict[str, Any] = {"ylabel": "coherent share", "ylim": (-0.04, 1.04)}
        left.set(xlabel="round", title="Coherence, healed, by round", **share)
        right.set(xlabel="trait moved, nats per token", title="After the last", **share)
        right.legend(frameon=False, fontsize=7)
        figure.tight_layout()
        return save(figure, folder / "comparison.png")


def _end(axes: Axes, row: Mapping[str, Any], name: str, colour: str) -> None:
    trait, coherent = row["trait_nats"], row["coherent"]
    axes.plot(_ends(trait), [coherent["mean"]] * 2, color=colour, lw=1, alpha=0.6)
    axes.plot([trait["mean"]] * 2, _ends(coherent), color=colour, lw=1, alpha=0.6)
    axes.plot(trait["mean"], coherent["mean"], "o", color=colour, ms=5, label=name)


def _ends(found: Mapping[str, Any]) -> Sequence[float]:
    """Both ends of an interval; of an unknown one, the mean."""
    ends: Sequence[float] = found["ci95"] or [found["mean"]] * 2
    return ends
