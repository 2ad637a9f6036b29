"""The searches for a dose on functions with a known answer."""

from __future__ import annotations

import pytest

from homeostat.steering.dose import bisect_dose, bisect_to


@pytest.mark.parametrize("limit", [0.6, 1.0, 2.5, 7.0])
def test_the_highest_acceptable_dose_is_found_to_the_width_of_the_search(limit: float) -> None:
    found = bisect_dose(0.5, 8.0, 8, lambda dose: dose <= limit)
    assert found.dose is not None
    width = 16 ** (2**-8)  # of the interval that is left, as a factor
    assert limit / width <= found.dose <= limit
    assert len(found.tried) == 8


def test_the_middle_is_geometric() -> None:
    found = bisect_dose(1.0, 16.0, 3, lambda dose: dose <= 5)
    assert [dose for dose, _ in found.tried] == pytest.approx([4.0, 8.0, 32**0.5])


def test_all_acceptable_comes_near_the_top() -> None:
    assert bisect_dose(1.0, 16.0, 4, lambda _: True).dose == pytest.approx(16 ** (15 / 16))


def test_the_lowest_is_tried_last_and_none_is_none() -> None:
    only_lowest = bisect_dose(1.0, 16.0, 2, lambda dose: dose <= 1.0)
    assert only_lowest.dose == 1.0
    assert len(only_lowest.tried) == 3
    assert bisect_dose(1.0, 16.0, 2, lambda _: False).dose is None


@pytest.mark.parametrize("target", [0.7, 2.0, 7.5])
def test_a_rising_measure_is_brought_to_its_target(target: float) -> None:
    found = bisect_to(0.5, 8.0, 9, lambda dose: dose, target)
    assert found.dose == pytest.approx(target, rel=0.01)


def test_the_nearest_dose_wins_where_the_measure_is_noisy() -> None:
    values = iter([5.0, 1.0, 1.9])
    found = bisect_to(1.0, 16.0, 3, lambda _: next(values), target=2.0)
    assert found.dose == found.tried[2][0]
