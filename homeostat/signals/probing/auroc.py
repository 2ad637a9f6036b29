"""Area under the ROC curve with intervals that resample authors, not rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

BOOTSTRAP = 1000


def auroc(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> float | None:
    """Chance that a row with label 1 scores above one with label 0; None without both classes."""
    if not 0 < label.sum() < len(label):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score))


def auroc_samples(
    label: Int[np.ndarray, " N"],
    score: Float[np.ndarray, " N"],
    groups: np.ndarray,
    samples: int = BOOTSTRAP,
) -> Float[np.ndarray, " M"]:
    """The AUROC of every bootstrap resample of the groups; NaN for one that lacks a class.

    The same groups are drawn whatever the score, so differences of two scores' samples are paired.
    All resamples are computed at once, a group that was drawn k times weighing k.
    """
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(0)
    weight_MG = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    order = np.argsort(score, kind="stable")
    weight_MN = weight_MG[:, member[order]].astype(np.float64)
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # the first row of every tie
    positive = np.add.reduceat(weight_MN * (label[order] == 1), starts, axis=1)
    negative = np.add.reduceat(weight_MN * (label[order] == 0), starts, axis=1)
    below = negative.cumsum(axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    area: Float[np.ndarray, " M"] = np.full(samples, np.nan)
    np.divide(wins, pairs, out=area, where=pairs > 0)
    return area


def interval95(samples: Float[np.ndarray, " M"]) -> tuple[float, float] | None:
    """The middle 95% of the resamples that have a value; None if none has."""
    present = samples[np.isfinite(samples)]
    if len(present) == 0:
        return None
    low, high = np.percentile(present, [2.5, 97.5])
    return float(low), float(high)
