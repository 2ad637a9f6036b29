"""Paired comparisons by hand, and intervals that cover what they should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from homeostat.evals.stats import (
    compare_paired,
    holm,
    level,
    mean_interval,
    paired_test,
    t_interval,
)
from homeostat.types import Estimate

NAN = float("nan")


def test_means_and_difference_by_hand() -> None:
    found = compare_paired([1.0, 2.0, 6.0], [2.0, 4.0, 7.5])
    assert found.before == 3.0
    assert found.after == 4.5
    assert found.diff == 1.5  # (1 + 2 + 1.5) / 3
    assert found.n == 3


def test_a_t_interval_of_few_by_hand() -> None:
    """Mean 2, deviation 1, two degrees of freedom: 2 -+ 4.3027 / sqrt(3)."""
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert t_interval(np.array([5.0])) is None
    assert t_interval(np.array([5.0, 5.0])) is None, "no spread says nothing of how much there is"


def test_the_difference_is_after_minus_before() -> None:
    better = compare_paired([-3.0, -2.0, -4.0], [-1.0, -1.0, -2.5])
    worse = compare_paired([-1.0, -1.0, -2.5], [-3.0, -2.0, -4.0])
    assert better.diff == 1.5
    assert worse.diff == -1.5
    assert better.ci95 is not None
    assert worse.ci95 is not None
    assert better.ci95[0] > 0
    assert worse.ci95[1] < 0


@pytest.mark.parametrize("missing", [None, NAN, float("inf")])
def test_items_that_miss_one_of_the_two_are_left_out(missing: float | None) -> None:
    found = compare_paired([1.0, missing, 100.0, 3.0], [2.0, 100.0, missing, 8.0])
    assert (found.before, found.after, found.diff, found.n) == (2.0, 5.0, 3.0, 2)


def test_the_interval_is_that_of_the_items_that_are_there() -> None:
    full = compare_paired([1.0, 2.0, 4.0], [2.0, 1.0, 8.0])
    holed = compare_paired([1.0, None, 2.0, 4.0, 7.0], [2.0, 3.0, 1.0, 8.0, NAN])
    assert holed == full


def test_nothing_to_compare() -> None:
    nothing = Estimate(None, None, None, None, 0)
    assert compare_paired([], []) == nothing
    assert compare_paired([None, 1.0], [1.0, NAN]) == nothing


def test_one_item_has_a_difference_but_no_interval() -> None:
    assert compare_paired([1.0], [3.0]) == Estimate(1.0, 3.0, 2.0, None, 1)


def test_differences_that_are_equal_but_for_rounding_are_constant() -> None:
    found = paired_test([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert found.effect is found.smallest is None
    assert found.p == 0.25
    assert found.estimate.ci95 is None


@pytest.mark.parametrize(("count", "can"), [(5, False), (6, True)])
def test_few_items_can_show_nothing_however_large(count: int, can: bool) -> None:
    found = paired_test([0.0] * count, [10.0 + 0.1 * i for i in range(count)])
    assert found.p == pytest.approx(2 * 0.5**count)
    assert (found.smallest is not None) == can


def test_differences_that_do_not_vary_have_no_interval() -> None:
    """Three seeds that agree to the last digit say nothing about a fourth."""
    found = compare_paired([1.0, 2.0, 5.0], [1.5, 2.5, 5.5])
    assert found == Estimate(8 / 3, 9.5 / 3, 0.5, None, 3)


def test_no_change_at_all() -> None:
    assert compare_paired([1.5, 2.0], [1.5, 2.0]) == Estimate(1.75, 1.75, 0.0, None, 2)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"zip|length|shorter|longer"):
        compare_paired([1.0, 2.0], [1.0])


def test_the_interval_follows_from_the_seed() -> None:
    before, after = np.random.default_rng(0).normal(size=(2, 12)).tolist()
    first, again = (compare_paired(before, after, samples=300, seed=4) for _ in range(2))
    assert first == again
    assert compare_paired(before, after, samples=300, seed=5).ci95 != first.ci95


def test_the_interval_equals_a_studentised_bootstrap_written_as_a_loop() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=25)
    after = before + rng.normal(0.4, 1.0, size=25)
    found = compare_paired(before.tolist(), after.tolist(), samples=5000)
    difference = after - before
    mean, error = difference.mean(), difference.std(ddof=1) / 5
    t = []
    for _ in range(5000):
        drawn = rng.choice(difference, size=25)
        t.append(float((drawn.mean() - mean) / (drawn.std(ddof=1) / 5)))
    t.sort()
    assert found.ci95 is not None
    assert found.ci95[0] == pytest.approx(mean - t[4875] * error, abs=0.15 * error)
    assert found.ci95[1] == pytest.approx(mean - t[125] * error, abs=0.15 * error)


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_of_24_items_hold_the_truth_as_often_as_they_say(skewed: bool) -> None:
    rng = np.random.default_rng(int(skewed))
    held = 0
    for world in range(400):
        values = rng.exponential(size=24) - 1 if skewed else rng.normal(size=24)
        interval = mean_interval(values, samples=400, seed=world)
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    assert held / 400 > 0.915  # three standard errors below 0.95


def test_a_share_of_all_is_no_certainty() -> None:
    """24 of 24 against 24 of 24, by hand: Wilson's lower bound is 24 / (24 + 1.96^2)."""
    whole = [1.0] * 24
    low = 24 / (24 + 1.959964**2)
    rows = [{"item": i, "right": 1.0} for i in range(24)]
    assert level(rows, "right")["ci95"] == pytest.approx([low, 1.0], abs=1e-4)
    assert compare_paired(whole, whole).ci95 == pytest.approx((low - 1, 1 - low), abs=1e-4)


def test_differences_of_zeros_alone_have_no_interval() -> None:
    """They may be shares or any other figure."""
    assert compare_paired([0.0] * 12, [0.0] * 12).ci95 is None


def test_where_one_item_of_24_differs_the_interval_is_that_of_t() -> None:
    """A third of the resamples lack it: the bootstrap would end at the mean itself."""
    values = np.array([-0.7] + [0.0] * 23)
    error = values.std(ddof=1) / 24**0.5
    expected = (values.mean() - 2.0687 * error, values.mean() + 2.0687 * error)
    assert mean_interval(values) == pytest.approx(expected, rel=1e-3)


def test_paired_shares_by_hand() -> None:
    """Newcombe's method 10 on 50 items: 36 both, 2 gained, 12 lost, none neither."""
    before = [1.0] * 36 + [0.0] * 2 + [1.0] * 12
    after = [1.0] * 36 + [1.0] * 2 + [0.0] * 12
    found = compare_paired(before, after)
    assert found.diff == pytest.approx(-0.2)
    phi = (36 * 0 - 2 * 12) / (48 * 2 * 38 * 12) ** 0.5
    z = 1.959964

    def wilson(hits: int) -> tuple[float, float]:
        p, n = hits / 50, 50
        centre, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
        return (centre - reach) / (1 + z**2 / n), (centre + reach) / (1 + z**2 / n)

    (low_p, high_p), (low_q, high_q) = wilson(38), wilson(48)
    down, up = (
        (one**2 - 2 * phi * one * other + other**2) ** 0.5
        for one, other in ((0.76 - low_p, high_q - 0.96), (high_p - 0.76, 0.96 - low_q))
    )
    assert found.ci95 == pytest.approx((-0.2 - down, -0.2 + up), abs=1e-5)


def test_the_comparison_is_paired() -> None:
    """Items differ a lot, the change hardly: an unpaired interval would hold 0."""
    before = [float(100 * k) for k in range(20)]
    after = [x + 1 + 0.1 * (k % 3) for k, x in enumerate(before)]
    found = compare_paired(before, after)
    assert found.ci95 is not None
    assert 1.0 <= found.ci95[0] <= found.ci95[1] <= 1.2


def test_intervals_cover_the_true_mean_in_about_95_of_100_data_sets() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for k in range(200):
        before = rng.normal(size=32)
        after = before + rng.normal(0.3, 1.0, size=32)
        interval = compare_paired(before.tolist(), after.tolist(), samples=400, seed=k).ci95
        assert interval is not None
        covered += interval[0] <= 0.3 <= interval[1]
    assert 0.9 <= covered / 200 <= 0.99


def test_groups_count_once_however_many_items_they_have() -> None:
    before = [0.0] * 6
    after = [1.0, 1.0, 1.0, 1.0, -1.0, -2.0]
    found = paired_test(before, after, groups=["a", "a", "a", "a", "b", "c"])
    assert found.groups == 3
    assert found.estimate.n == 6
    assert found.estimate.diff == pytest.approx((1 - 1 - 2) / 3)
    differences = np.array([1.0, -1.0, -2.0])
    assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_the_p_value_is_the_share_of_sign_flips_that_go_as_far() -> None:
    after = [1.0, 2.0, 3.0, 4.0, -0.5]
    found = paired_test([0.0] * 5, after)
    sums = [
        abs(sum(s * x for s, x in zip(signs, after, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert found.p == pytest.approx(np.mean([own >= abs(sum(after)) - 1e-9 for own in sums]))


def test_the_smallest_effect_grows_with_the_spread_and_falls_with_the_items() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=20), rng.normal(size=200)
    small, large = (paired_test([0.0] * len(x), list(x)) for x in (few, many))
    assert small.smallest is not None
    assert large.smallest is not None
    assert small.smallest == pytest.approx(2.8 / np.sqrt(20) * few.std(ddof=1), rel=0.1)
    assert large.smallest < small.smallest
    wide = paired_test([0.0] * 20, list(10 * few))
    assert wide.smallest == pytest.approx(10 * small.smallest)


def test_what_does_not_vary_has_no_effect_size() -> None:
    same = paired_test([1.0, 2.0], [1.0, 2.0])
    assert (same.effect, same.p, same.smallest) == (None, 1.0, None)
    assert paired_test([1.0], [2.0]).p is None
    assert paired_test([None, 1.0], [2.0, None]).estimate.diff is None


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert found == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.06),
        "c": pytest.approx(0.06),
        "d": None,
    }
    assert holm({"a": None}) == {"a": None}
