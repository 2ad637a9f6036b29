"""Valence by hand: 0 at the set points, below 0 everywhere else."""

from __future__ import annotations

import numpy as np
import pytest

from homeostat.config import SetPointConfig
from homeostat.reward.valence import SetPoint, resolve, valence
from homeostat.signals.calibration import Calibration
from homeostat.types import SignalTable

NAMES = ("entropy", "sentiment", "boredom")
POINTS = {
    "entropy": SetPoint(weight=0.5, setpoint=2.0, tolerance=0.4),
    "sentiment": SetPoint(weight=2.0, setpoint=-0.5, tolerance=0.25),
}


def table(*rows: tuple[float, float, float]) -> SignalTable:
    count = len(rows)
    values = np.array(rows, dtype=float).reshape(count, 3)
    return SignalTable(NAMES, values, np.arange(count), np.ones(count, dtype=np.int64))


@pytest.fixture
def calibration() -> Calibration:
    """Quantiles at 5, 25, 50, 75 and 95%; boredom does not vary on the base model."""
    quantiles = {
        "entropy": (1.0, 1.5, 2.2, 2.849, 4.0),
        "sentiment": (-0.9, -0.4, 0.1, 0.2, 0.9),
        "boredom": (0.2, 0.2, 0.2, 0.2, 0.2),
    }
    return Calibration(quantiles, dict.fromkeys(quantiles, 20), np.ones(1))


# --- valence ------------------------------------------------------------------------------------


def test_valence_by_hand() -> None:
    found = valence(table((2.2, -0.5, 0.9), (1.6, 0.0, 0.1), (2.0, -1.0, 0.0)), POINTS)
    assert found.names == ("entropy", "sentiment")
    #            -0.5 |x - 2| / 0.4   -2 |x + 0.5| / 0.25
    expected = [[-0.25, 0.0], [-0.5, -4.0], [0.0, -4.0]]
    np.testing.assert_allclose(found.terms_NS, expected, atol=1e-12)
    np.testing.assert_allclose(found.total_N, [-0.25, -4.5, -4.0])


def test_terms_sum_to_the_total() -> None:
    rng = np.random.default_rng(0)
    found = valence(table(*rng.normal(size=(20, 3)).tolist()), POINTS)
    for row in range(20):
        assert found.total_N[row] == pytest.approx(sum(float(t) for t in found.terms_NS[row]))


def test_valence_is_zero_at_the_set_points_and_lower_everywhere_else() -> None:
    at = valence(table((2.0, -0.5, 0.7)), POINTS).total_N[0]
    assert at == 0
    steps = [(a, b) for a in (-0.1, 0.0, 0.1) for b in (-0.1, 0.0, 0.1) if a or b]
    beside = valence(table(*[(2.0 + a, -0.5 + b, 0.7) for a, b in steps]), POINTS)
    assert (beside.total_N < 0).all()
    assert (beside.terms_NS <= 0).all()


def test_valence_is_symmetric_and_falls_with_distance() -> None:
    above = valence(table((2.1, -0.5, 0.0), (2.3, -0.5, 0.0)), POINTS).total_N
    below = valence(table((1.9, -0.5, 0.0), (1.7, -0.5, 0.0)), POINTS).total_N
    np.testing.assert_allclose(above, below)
    assert above[1] == pytest.approx(3 * above[0])
    assert above[1] < above[0] < 0


def test_one_tolerance_off_costs_the_weight() -> None:
    found = valence(table((2.4, -0.5, 0.0), (2.0, -0.25, 0.0)), POINTS)
    np.testing.assert_allclose(found.total_N, [-0.5, -2.0])


def test_a_row_that_misses_a_weighted_signal_has_no_valence() -> None:
    found = valence(table((float("nan"), -0.5, 0.0), (2.0, -0.5, 0.0)), POINTS)
    assert np.isnan(found.total_N[0])
    assert found.total_N[1] == 0


def test_a_missing_signal_without_weight_does_not_matter() -> None:
    assert valence(table((2.4, -0.5, float("nan"))), POINTS).total_N[0] == pytest.approx(-0.5)


def test_without_set_points_every_reply_is_worth_the_same() -> None:
    found = valence(table((2.4, -0.5, 0.1), (9.0, 1.0, 0.2)), {})
    assert found.total_N.tolist() == [0.0, 0.0]
    assert found.terms_NS.shape == (2, 0)


# --- resolve ------------------------------------------------------------------------------------


def test_auto_is_the_median_and_the_spread_of_the_base_model(calibration: Calibration) -> None:
    points = resolve({"entropy": SetPointConfig(weight=0.3)}, calibration)
    # IQR / 1.349 = (2.849 - 1.5) / 1.349 = 1
    assert points["entropy"].weight == 0.3
    assert points["entropy"].setpoint == 2.2
    assert points["entropy"].tolerance == pytest.approx(1.0)
    assert points["entropy"].automatic == ("setpoint", "tolerance")


def test_explicit_numbers_are_taken_as_they_are(calibration: Calibration) -> None:
    points = resolve({"entropy": SetPointConfig(setpoint=3, tolerance=0.5)}, calibration)
    assert points == {"entropy": SetPoint(1.0, 3.0, 0.5, ())}


@pytest.mark.parametrize(
    ("config", "setpoint", "tolerance", "automatic"),
    [
        (SetPointConfig(setpoint=0.0), 0.0, 0.6 / 1.349, ("tolerance",)),
        (SetPointConfig(tolerance=0.5), 0.1, 0.5, ("setpoint",)),
    ],
)
def test_half_automatic(
    calibration: Calibration,
    config: SetPointConfig,
    setpoint: float,
    tolerance: float,
    automatic: tuple[str, ...],
) -> None:
    point = resolve({"sentiment": config}, calibration)["sentiment"]
    assert point.setpoint == setpoint
    assert point.tolerance == pytest.approx(tolerance)
    assert point.automatic == automatic


@pytest.mark.parametrize(
    ("name", "floor", "expected"),
    [("boredom", 0.05, 0.05), ("entropy", 0.05, 1.0), ("entropy", 1.5, 1.5)],
)
def test_min_tolerance_bounds_an_automatic_tolerance_from_below(
    calibration: Calibration, name: str, floor: float, expected: float
) -> None:
    point = resolve({name: SetPointConfig(min_tolerance=floor)}, calibration)[name]
    assert point.tolerance == pytest.approx(expected)


def test_min_tolerance_leaves_an_explicit_tolerance_alone(calibration: Calibration) -> None:
    config = SetPointConfig(tolerance=0.001, min_tolerance=0.05)
    assert resolve({"boredom": config}, calibration)["boredom"].tolerance == 0.001


def test_a_signal_with_weight_zero_is_ignored(calibration: Calibration) -> None:
    config = {"entropy": SetPointConfig(weight=0.5), "boredom": SetPointConfig(weight=0.0)}
    points = resolve(config, calibration)
    assert list(points) == ["entropy"]
    found = valence(table((2.2, 0.0, float("nan"))), points)
    assert found.names == ("entropy",)
    assert found.total_N[0] == 0


def test_weight_zero_needs_no_calibration(calibration: Calibration) -> None:
    assert resolve({"repetition": SetPointConfig(weight=0.0)}, calibration) == {}
