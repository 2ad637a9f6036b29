from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from homeostat.signals.probing.auroc import auroc, auroc_samples, interval95


def slow_auroc(label: list[int], score: list[float]) -> float:
    """Share of pairs in which the row with label 1 scores higher; a tie counts half."""
    pairs = [
        (up > down) + 0.5 * (up == down)
        for up, one in zip(score, label, strict=True)
        for down, zero in zip(score, label, strict=True)
        if (one, zero) == (1, 0)
    ]
    return sum(pairs) / len(pairs)


def slow_samples(label: np.ndarray, score: np.ndarray, groups: np.ndarray, n: int) -> list[float]:
    """One resample after the other, a group drawn k times weighing k."""
    names = sorted(set(groups.tolist()))
    rng = np.random.default_rng(0)
    found = []
    for counts in rng.multinomial(len(names), [1 / len(names)] * len(names), size=n):
        times = dict(zip(names, counts.tolist(), strict=True))
        weight = np.array([times[name] for name in groups.tolist()], dtype=float)
        in_it = weight > 0
        both = len(set(label[in_it].tolist())) == 2
        found.append(
            roc_auc_score(label[in_it], score[in_it], sample_weight=weight[in_it])
            if both
            else math.nan
        )
    return found


def rows(
    seed: int, n: int, groups: int, levels: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores that say something (rounded to `levels`: ties), and groups of any size."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    score = label + 1.5 * rng.normal(size=n)
    if levels is not None:
        score = np.round(score * levels) / levels
    return label, score, np.array([f"g{i}" for i in rng.integers(groups, size=n)])


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_auroc_is_the_share_of_pairs(levels: int | None) -> None:
    label, score, _ = rows(0, 60, 5, levels)
    assert auroc(label, score) == pytest.approx(slow_auroc(label.tolist(), score.tolist()))


@pytest.mark.parametrize("label", [[], [0, 0], [1, 1, 1]])
def test_auroc_wants_both_classes(label: list[int]) -> None:
    assert auroc(np.array(label, dtype=np.int64), np.zeros(len(label))) is None


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize(("n", "groups"), [(80, 12), (40, 40), (9, 3)])
def test_samples_equal_a_slow_loop(n: int, groups: int, levels: int | None) -> None:
    label, score, names = rows(1, n, groups, levels)
    found = auroc_samples(label, score, names, samples=60)
    assert found.tolist() == pytest.approx(slow_samples(label, score, names, 60), nan_ok=True)


def test_resample_without_a_class_has_no_value() -> None:
    """Two groups with a class each: a resample that draws one of them twice lacks the other."""
    label, score, groups = np.array([1, 1, 0]), np.array([3.0, 2.0, 1.0]), np.array(["a", "a", "b"])
    found = auroc_samples(label, score, groups, samples=400)
    assert 0.4 < np.isnan(found).mean() < 0.6
    assert set(found[np.isfinite(found)].tolist()) == {1.0}
    assert interval95(found) == (1.0, 1.0)


def test_all_scores_the_same_is_chance() -> None:
    label = np.array([0, 1] * 10)
    found = auroc_samples(label, np.zeros(20), np.arange(20), samples=50)
    assert set(found[np.isfinite(found)].tolist()) == {0.5}


def test_rows_of_a_group_are_drawn_together() -> None:
    """Within a group all rows agree, so a good group and a bad one leave the figure open."""
    label = np.array([0, 1] * 20)
    groups = np.repeat(["good", "bad"], 20)
    score = np.where(groups == "bad", -label, label).astype(float)
    assert interval95(auroc_samples(label, score, groups)) == (0.0, 1.0)
    apart = interval95(auroc_samples(label, score, np.arange(40)))
    assert apart is not None
    assert 0.2 < apart[0] < 0.5 < apart[1] < 0.8


def test_samples_of_two_scores_are_paired() -> None:
    """The same rows are drawn whatever the score: order alone counts, and gaps are shared."""
    label, score, groups = rows(2, 12, 4, None)
    own = auroc_samples(label, score, groups)
    assert np.array_equal(own, auroc_samples(label, np.exp(score), groups), equal_nan=True)
    np.testing.assert_allclose(
        own + auroc_samples(label, -score, groups), np.where(own >= 0, 1, own)
    )
    assert np.isnan(own).any()


def test_interval_is_the_middle_95_percent_of_those_with_a_value() -> None:
    samples = np.random.default_rng(0).permutation([*np.arange(201) / 200, math.nan, math.nan])
    assert interval95(samples) == pytest.approx((0.025, 0.975))


@pytest.mark.parametrize("samples", [[], [math.nan, math.nan]])
def test_no_interval_without_values(samples: list[float]) -> None:
    assert interval95(np.array(samples)) is None
