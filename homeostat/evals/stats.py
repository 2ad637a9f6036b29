"""Paired comparisons with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from homeostat.types import Estimate


def compare_paired(
    before: Sequence[float | None],
    after: Sequence[float | None],
    samples: int = 5000,
    seed: int = 0,
) -> Estimate:
    """Means, mean difference (after - before) and its 95% bootstrap interval over items.

    Items that lack one of the two are left out of all figures and of ``n``; below two items there
    is no interval.

    Args:
        before: One number per item; None or NaN = missing.
        after: The same items in the same order.
        samples: Bootstrap resamples of the items.
        seed: Of the resampling.

    Source: percentile bootstrap, Efron and Tibshirani 1993, chapter 13 (`scipy.stats.bootstrap`).
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
    interval = _interval(difference, samples, seed)
    return Estimate(
        float(means[0]), float(means[1]), float(difference.mean()), interval, len(pairs)
    )


def _interval(values: np.ndarray, samples: int, seed: int) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=samples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
