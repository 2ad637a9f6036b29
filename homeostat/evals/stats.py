"""Paired comparisons: intervals, sign-flip tests, effect sizes, power, Holm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float

from homeostat.types import Estimate

POWER, ALPHA = 0.8, 0.05
LEAST_VARYING = 0.975  # share of resamples that must vary, or a tail of the interval is lost


@dataclass(frozen=True)
class PairedTest:
    """What a paired comparison says.

    Attributes:
        estimate: Means, difference and interval; ``n`` counts items.
        groups: How many independent groups the items come in.
        effect: Mean difference over its standard deviation (Cohen's d of the differences); None
            where nothing varies.
        p: Two-sided, of a sign-flip test over groups; None below two groups.
        smallest: The smallest difference that so many groups would show with a power of 0.8 at a
            level of 0.05, in the metric's unit, before any correction for other tests; None where
            nothing varies, or where so few groups can show nothing, however large.
    """

    estimate: Estimate
    groups: int
    effect: float | None
    p: float | None
    smallest: float | None


def compare_paired(
    before: Sequence[float | None],
    after: Sequence[float | None],
    samples: int = 5000,
    seed: int = 0,
) -> Estimate:
    """Means, mean difference (after - before) and its 95% interval over items.

    Items that lack one of the two are left out of all figures and of ``n``; below two items, or
    where no difference of other than shares varies, there is no interval.

    Args:
        before: One number per item; None or NaN = missing.
        after: The same items in the same order.
        samples: Bootstrap resamples of the items.
        seed: Of the resampling.

    Source: `mean_interval`; for items that are 0 or 1 on both sides `share_interval`.
    """
    pairs = np.array(
        [[np.nan if x is None else x for x in pair] for pair in zip(before, after, strict=True)],
        dtype=float,
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) == 0:
        return Estimate(None, None, None, None, 0)
    difference = pairs[:, 1] - pairs[:, 0]
    means = pairs.mean(axis=0)
    interval = (
        share_interval(pairs[:, 0], pairs[:, 1])
        if _are_shares(pairs)
        else mean_interval(difference, samples, seed)
    )
    return Estimate(
        float(means[0]), float(means[1]), float(difference.mean()), interval, len(pairs)
    )


def paired_test(
    before: Sequence[float | None],
    after: Sequence[float | None],
    groups: Sequence[Hashable] | None = None,
    samples: int = 5000,
    seed: int = 0,
) -> PairedTest:
    """A paired comparison over items, or over groups of items that share a stem or an id.

    Items of a group are averaged first, so that a group counts once however many items it has.

    Args:
        before: One number per item; None or NaN = missing.
        after: The same items in the same order.
        groups: What each item belongs to; None = every item is a group of its own.
        samples: Resamples of the bootstrap, and sign flips where there are too many to try all.
        seed: Of the resampling.

    Source: `scipy.stats.permutation_test` with exchanged signs; power of the paired t test
    (`statsmodels.stats.power.TTestPower`).
    """
    from statsmodels.stats.power import TTestPower

    old, new = _by_group(before, after, groups)
    estimate = compare_paired(old.tolist(), new.tolist(), samples, seed)
    items = sum(
        x is not None and y is not None and bool(np.isfinite([x, y]).all())
        for x, y in zip(before, after, strict=True)
    )
    estimate = Estimate(estimate.before, estimate.after, estimate.diff, estimate.ci95, items)
    difference = new - old
    count = len(difference)
    spread = float(difference.std(ddof=1)) if count > 1 else 0.0
    if count < 2:
        return PairedTest(estimate, count, None, None, None)
    if _constant(difference):
        # Of all exchanges of signs only two are as far out as groups that agree to the last digit.
        return PairedTest(estimate, count, None, 0.5 ** (count - 1) if difference[0] else 1.0, None)
    p = scipy.stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=samples,
        rng=np.random.default_rng(seed),
    ).pvalue
    smallest = None
    if 0.5 ** (count - 1) < ALPHA:  # the least p that exchanging signs can give
        smallest = float(TTestPower().solve_power(nobs=count, alpha=ALPHA, power=POWER) * spread)
    return PairedTest(estimate, count, float(difference.mean() / spread), float(p), smallest)


def _constant(values: np.ndarray) -> bool:
    """Whether all are the same up to the rounding of sums and differences."""
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def _by_group(
    before: Sequence[float | None],
    after: Sequence[float | None],
    groups: Sequence[Hashable] | None,
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Means of each group over the items that have both numbers."""
    names = range(len(before)) if groups is None else groups
    pairs_by_group: dict[Hashable, list[tuple[float, float]]] = {}
    for name, old, new in zip(names, before, after, strict=True):
        if old is not None and new is not None and np.isfinite([old, new]).all():
            pairs_by_group.setdefault(name, []).append((old, new))
    means = np.array([np.mean(pairs, axis=0) for pairs in pairs_by_group.values()]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """P values of a family, corrected after Holm; a missing one stays missing and counts not."""
    from statsmodels.stats.multitest import multipletests

    known = [name for name, value in p.items() if value is not None]
    if not known:
        return dict(p)
    corrected = multipletests([p[name] for name in known], method="holm")[1]
    return {**p, **dict(zip(known, map(float, corrected), strict=True))}


def mean_interval(
    values: np.ndarray, samples: int = 5000, seed: int = 0
) -> tuple[float, float] | None:
    """95% studentised bootstrap interval of a mean.

    A t interval where so few values differ from the rest that some resamples hold none of these,
    and with them a tail is lost. None below two values, and where they do not vary: they say
    nothing about how much others would.

    Args:
        values: One per item.
        samples: Bootstrap resamples.
        seed: Of the resampling.

    Source: Efron and Tibshirani 1993, chapter 12.5 (bootstrap-t). A percentile interval of 24
    values holds the truth in 90 of 100 worlds, this one in 94.
    """
    count = len(values)
    if count < 2 or _constant(values):
        return None
    mean, error = float(values.mean()), float(values.std(ddof=1)) / np.sqrt(count)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(count, size=(samples, count))]
    spread = drawn.std(axis=1, ddof=1)
    varies = spread > 0
    if varies.mean() < LEAST_VARYING:
        return t_interval(values)
    t = (drawn.mean(axis=1) - mean)[varies] / (spread[varies] / np.sqrt(count))
    low, high = np.percentile(t, [2.5, 97.5])
    return float(mean - high * error), float(mean - low * error)


def t_interval(values: Float[np.ndarray, " N"]) -> tuple[float, float] | None:
    """95% t interval of a mean; None below two values, or where they do not vary."""
    if len(values) < 2 or _constant(values):
        return None
    error = values.std(ddof=1) / np.sqrt(len(values))
    reach = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return float(values.mean() - reach), float(values.mean() + reach)


def _are_shares(values: np.ndarray) -> bool:
    """Whether all are 0 or 1; zeros alone may be any figure, and count as none."""
    return bool(np.isin(values, (0.0, 1.0)).all() and values.any())


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95% interval of a share."""
    ends = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def share_interval(
    before: Float[np.ndarray, " N"], after: Float[np.ndarray, " N"]
) -> tuple[float, float] | None:
    """95% interval of the difference of two shares of the same items; None below two items.

    With d the distances of Wilson's bounds from the shares p (after) and q (before):

        p - q - sqrt(dl_p^2 - 2 phi dl_p du_q + du_q^2)
        p - q + sqrt(du_p^2 - 2 phi du_p dl_q + dl_q^2)

    Args:
        before: 0 or 1 for every item.
        after: The same items in the same order.

    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10. So 24 of 24 against 24 of 24
    is no certainty.
    """
    count = len(before)
    if count < 2:
        return None
    p, q = float(after.mean()), float(before.mean())
    (low_p, high_p), (low_q, high_q) = (wilson(int(x.sum()), count) for x in (after, before))
    both, neither = float((after * before).sum()), float(((1 - after) * (1 - before)).sum())
    gained, lost = float((after * (1 - before)).sum()), float(((1 - after) * before).sum())
    product = both * neither - gained * lost
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if product > 0:
        product = max(product - count / 2, 0.0)
    phi = product / np.sqrt(margins) if margins > 0 else 0.0
    down = _joined(p - low_p, high_q - q, phi)
    up = _joined(high_p - p, q - low_q, phi)
    return p - q - down, p - q + up


def _joined(one: float, other: float, phi: float) -> float:
    return float(np.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0)))


def level(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Mean of a figure in one arm and its 95% interval (Wilson's of a share); None if unknown.

    Over items, or over stems where items share one; ``n`` counts those.
    """
    by_stem: dict[str, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            by_stem.setdefault(str(row.get("stem", row["item"])), []).append(row[key])
    values = [float(np.mean(of_stem)) for of_stem in by_stem.values()]
    share = len(values) > 1 and bool(np.isin(values, (0.0, 1.0)).all())
    interval = wilson(int(sum(values)), len(values)) if share else mean_interval(np.array(values))
    return {
        "mean": float(np.mean(values)) if values else None,
        "ci95": None if interval is None else list(interval),
        "n": len(values),
    }
