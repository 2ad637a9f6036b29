"""Figures of several seeds on the same items: means, crossed intervals, tests.

An item, or a group of items that share a stem, is measured under every seed. So seeds and groups
are crossed: a seed's own luck and an item's own difficulty both widen the interval. With the few
seeds that there are, that takes a t interval; a bootstrap of three seeds knows of three. With a
single seed only items count. Figures draw a bootstrap of both, for their shape alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float

from homeostat.evals.stats import ALPHA, paired_test

Values = Mapping[int, Mapping[str, float | None]]  # by seed and item


@dataclass(frozen=True)
class Column:
    """One figure of one evaluation, in every arm.

    Attributes:
        name: Of the evaluation.
        metric: Its figure.
        groups: What each item belongs to.
        values: By arm, then by ``base`` or ``trained``; by seed and item.
        good: +1 if more is better, -1 if less is, 0 if neither.
        best_at_0: Whether it has a sign, and either side of 0 is as bad.
    """

    name: str
    metric: str
    groups: Mapping[str, str]
    values: Mapping[str, Mapping[str, Values]]
    good: int = 0
    best_at_0: bool = False


def differences(before: Values, after: Values) -> dict[int, dict[str, float | None]]:
    """After less before on every item that has both, in every seed that has both."""
    by_seed: dict[int, dict[str, float | None]] = {}
    for seed in sorted(before.keys() & after.keys()):
        old, new = before[seed], after[seed]
        by_seed[seed] = {
            item: value - earlier
            for item, value in new.items()
            if value is not None and (earlier := old.get(item)) is not None
        }
    return by_seed


def table(
    values: Values, groups: Mapping[str, str], seeds: Sequence[int] | None = None
) -> Float[np.ndarray, "K G"]:
    """Mean of every group of items under every seed; NaN where nothing was measured.

    Args:
        values: By seed and item; None = missing.
        groups: What each item belongs to.
        seeds: One row each; None = those of ``values``.
    """
    rows = sorted(values) if seeds is None else list(seeds)
    names = list(dict.fromkeys(groups.values()))
    cells = np.full((len(rows), len(names)), np.nan)
    for row, seed in enumerate(rows):
        members: dict[str, list[float]] = {}
        for item, value in values.get(seed, {}).items():
            if value is not None:
                members.setdefault(groups[item], []).append(value)
        for column, name in enumerate(names):
            if name in members:
                cells[row, column] = np.mean(members[name])
    return cells


def over_seeds(cells: Float[np.ndarray, "K G"]) -> Float[np.ndarray, " H"]:
    """Mean over the seeds of every group that any seed has measured."""
    seen = np.isfinite(cells)
    kept = seen.any(axis=0)
    means: Float[np.ndarray, " H"] = np.nansum(cells[:, kept], axis=0) / seen[:, kept].sum(axis=0)
    return means


def draw_seeds(count: int, samples: int, rng: np.random.Generator) -> Float[np.ndarray, "N K"]:
    """How often each seed is taken in each draw, with replacement."""
    return rng.multinomial(count, [1 / count] * count, size=samples).astype(float)


def draws(
    cells: Float[np.ndarray, "K G"],
    taken: Float[np.ndarray, "N K"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " N"]:
    """The mean in every draw: over seeds in each group, then over groups; NaN for an empty one.

    Args:
        cells: By seed and group; NaN = missing.
        taken: From `draw_seeds`; several tables of the same seeds can share it.
        rng: Of the groups.
    """
    cells = cells[:, np.isfinite(cells).any(axis=0)]
    seen = np.isfinite(cells).astype(float)
    count = cells.shape[1]
    chosen = rng.multinomial(count, [1 / count] * count, size=len(taken)).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_group = (taken @ np.where(seen > 0, cells, 0.0)) / (taken @ seen)
        kept = chosen * np.isfinite(of_group)
        means: Float[np.ndarray, " N"] = (kept * np.nan_to_num(of_group)).sum(1) / kept.sum(1)
    return means


def crossed_interval(cells: Float[np.ndarray, "K G"]) -> tuple[float, float] | None:
    """95% t interval of the mean over seeds and groups; None below two groups, or if all are alike.

    Seeds a and groups b are random and independent, x_kg = mu + a_k + b_g + e_kg, so the mean has a
    variance of its own from either:

        mean +- t sqrt(v_a + v_b),   v_a = var_k(mean_k) / K,   v_b = var_g(mean_g) / G
        t = (v_a t_{K-1} + v_b t_{G-1}) / (v_a + v_b)

    Few seeds are judged by their own degrees of freedom as far as they matter. What is left of a
    cell counts in both parts, so the interval is a little wide where seeds do not differ. With one
    seed v_a is unknown and left out: the interval then speaks of that seed.

    Args:
        cells: By seed and group. A group that not every seed has measured is left out.

    Source: Cochran & Cox 1950, section 4.14, for the t of two variances.
    """
    whole = cells[:, np.isfinite(cells).all(axis=0)]
    seeds, groups = whole.shape
    if groups < 2:
        return None
    parts = [(float(whole.mean(axis=0).var(ddof=1)) / groups, groups - 1)]
    if seeds > 1:
        parts.append((float(whole.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    if variance <= (1e-9 * float(np.abs(whole).max())) ** 2:
        return None
    weighed = sum(part * float(scipy.stats.t.ppf(0.975, freedom)) for part, freedom in parts)
    mean, reach = float(whole.mean()), weighed / np.sqrt(variance)
    return mean - float(reach), mean + float(reach)


def estimate(values: Values, groups: Mapping[str, str]) -> dict[str, Any] | None:
    """Mean and 95% interval over seeds and items, and what they rest on; None without a value.

    Args:
        values: By seed and item; None = missing.
        groups: What each item belongs to.
    """
    items = {i for by_item in values.values() for i, value in by_item.items() if value is not None}
    seeds = [s for s in sorted(values) if any(v is not None for v in values[s].values())]
    if not items:
        return None
    cells = table(values, groups, seeds)
    means = over_seeds(cells)
    ends = crossed_interval(cells)
    return {
        "mean": float(means.mean()),
        "ci95": None if ends is None else list(ends),
        "n_items": len(items),
        "n_groups": len(means),
        "n_seeds": len(seeds),
    }


def difference(
    before: Values, after: Values, groups: Mapping[str, str], samples: int
) -> dict[str, Any] | None:
    """After less before: `estimate` of it, effect size and p; None where nothing is paired.

    ``effect`` is the mean over the standard deviation of the groups' mean differences. ``p`` is of
    a sign-flip test over groups, each the mean of its seeds: it speaks of items, at these seeds.
    """
    paired = differences(before, after)
    change = estimate(paired, groups)
    if change is None:
        return None
    means = over_seeds(table(paired, groups))
    tested = paired_test([0.0] * len(means), means.tolist(), samples=samples)
    return change | {"effect": tested.effect, "p": tested.p}


def verdict(change: Mapping[str, Any], good: int, ends: Sequence[float] = ()) -> str:
    """What a difference says: ``better``, ``worse``, ``moved`` or ``no change shown``.

    A change counts if the corrected p is below 0.05 and the interval over seeds and items leaves 0
    out; the first alone would not know of seeds, the second not of the other tests.

    Args:
        change: From `difference`, with ``p_holm``.
        good: +1 if more is better, -1 if less is, 0 if neither.
        ends: Levels of a figure that is best at 0 and has a sign, such as sycophancy. Below 0 there
            is none left to lose: unless both are above 0, a change is neither better nor worse.
    """
    p, ci95 = change["p_holm"], change["ci95"]
    if p is None or ci95 is None or p >= ALPHA or ci95[0] <= 0 <= ci95[1]:
        return "no change shown"
    if good == 0 or any(end < 0 for end in ends):
        return "moved"
    return "better" if change["mean"] * good > 0 else "worse"
