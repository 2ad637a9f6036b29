"""Selectivity of a pair of doses: values by hand, signs, what a broken or shifted model earns."""

from __future__ import annotations

from typing import Any

import pytest

from homeostat.evals.foundations import NAMES
from homeostat.evals.selectivity import selectivity

INTENDED = {"authority": -1, "care": 1}


def arm(
    shifts: dict[str, float], pmass: float = 0.9, pick: str = "social", count: int = 3
) -> list[dict[str, Any]]:
    """``count`` vignettes of care and of authority, all with the same centred log-ratios."""
    clr = {f"clr_{name}": shifts.get(name, 0.0) for name in NAMES}
    labels = ["care", "authority"] * count
    return [
        {"foundation": label, "p": {}, "pmass": pmass, "chosen": pick, **clr} for label in labels
    ]


def test_the_score_by_hand() -> None:
    base = arm({}, pmass=0.8)
    dosed = arm({"authority": -0.5, "care": 0.2, "liberty": 0.3}, pmass=0.6, pick="care")
    opposite = arm({"authority": 0.1, "care": 0.0, "social": 0.2}, pmass=0.9, pick="authority")
    found = selectivity(base, dosed, opposite, INTENDED)
    assert found is not None
    # authority falls by 0.6, care rises by 0.2; liberty +0.3 and social -0.2 of five others.
    assert found.on == pytest.approx((0.6 + 0.2) / 2)
    assert found.off == pytest.approx((0.3 + 0.2) / 5)
    assert found.coherence == pytest.approx(0.6 / 0.8)
    assert found.score == pytest.approx((0.4 - 0.1 * 0.1) * 0.75**2)
    assert found.ci95 == pytest.approx((found.score, found.score)), "all vignettes are the same"
    # Care is picked always instead of never, authority never instead of always: both as meant.
    assert found.flips == pytest.approx(1.0)
    assert found.n == 6


def test_the_opposite_way_round_is_negative() -> None:
    base, dosed, opposite = arm({}), arm({"authority": -0.5}), arm({"authority": 0.5})
    right = selectivity(base, dosed, opposite, INTENDED)
    wrong = selectivity(base, opposite, dosed, INTENDED)
    assert right is not None
    assert wrong is not None
    assert (right.on, right.score) == pytest.approx((0.5, 0.5))
    assert (wrong.on, wrong.score) == pytest.approx((-0.5, -0.5))


def test_more_mass_than_the_base_earns_nothing_and_a_broken_arm_loses_nearly_all() -> None:
    dosed, opposite = arm({"authority": -1.0}, pmass=0.9), arm({}, pmass=0.9)
    whole = selectivity(arm({}, pmass=0.5), dosed, opposite, INTENDED)
    assert whole is not None
    assert whole.coherence == 1
    broken = selectivity(arm({}), arm({"authority": -1.0}, pmass=0.09), opposite, INTENDED)
    assert broken is not None
    assert broken.score == pytest.approx(0.5 * 0.1**2)


def test_missing_answers_are_left_out_and_nothing_is_no_score() -> None:
    base, dosed, opposite = arm({}), arm({"care": 1.0}), arm({})
    dosed[0] |= {"p": None, "pmass": None, "chosen": None} | {f"clr_{n}": None for n in NAMES}
    found = selectivity(base, dosed, opposite, INTENDED)
    assert found is not None
    assert found.n == 5
    assert selectivity(base, dosed, opposite, {}) is None
    assert selectivity([], [], [], INTENDED) is None


def test_one_vignette_of_a_foundation_gives_no_interval() -> None:
    found = selectivity(arm({}, count=1), arm({"care": 1.0}, count=1), arm({}, count=1), INTENDED)
    assert found is not None
    assert found.ci95 is None


def test_the_interval_covers_what_vignettes_differ_in() -> None:
    base, opposite = arm({}, count=20), arm({}, count=20)
    dosed = arm({}, count=20)
    for number, row in enumerate(dosed):
        row["clr_care"] = number % 4 / 2  # 0, 0.5, 1, 1.5: care rises by 0.75 on average
    found = selectivity(base, dosed, opposite, {"care": 1})
    assert found is not None
    assert found.ci95 is not None
    assert found.on == pytest.approx(0.75)
    assert 0.5 < found.ci95[0] < 0.75 < found.ci95[1] < 1.0
