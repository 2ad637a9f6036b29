"""Valence by hand: 0 at the set points, below 0 everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
from configs import set_point_config

from homeostat.config.reward import SetPointConfig
from homeostat.errors import HomeostatError
from homeostat.reward.valence import SetPoint, resolve, resolve_one, valence
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
    return SignalTable(NAMES, values, tuple(range(1, 2 * count, 2)))


@pytest.fixture
def calibration() -> Calibration:
    """Quantiles at 5, 25, 50, 75 and 95%; boredom does not vary on the base model."""
    quantiles = {
        "entropy": (1.0, 1.5, 2.2, 2.849, 4.0),
        "sentiment": (-0.9, -0.4, 0.1, 0.2, 0.9),
        "boredom": (0.2, 0.2, 0.2, 0.2, 0.2),
    }
    values = {name: [found[2]] * 20 for name, found in quantiles.items()}
    return Calibration(quantiles, dict.fromkeys(quantiles, 20), values, np.ones(1))


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


# --- sides and dead zones ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "dead_zone", "expected"),
    [
        # values 0, 1, 1.5, 2, 3.5 around a set point of 1.5; a tolerance is 0.5
        ("both", 0.0, [3.0, 1.0, 0.0, 1.0, 4.0]),
        ("above", 0.0, [0.0, 0.0, 0.0, 1.0, 4.0]),
        ("below", 0.0, [3.0, 1.0, 0.0, 0.0, 0.0]),
        ("both", 0.75, [1.5, 0.0, 0.0, 0.0, 2.5]),
        ("above", 0.75, [0.0, 0.0, 0.0, 0.0, 2.5]),
        ("below", 0.75, [1.5, 0.0, 0.0, 0.0, 0.0]),
        ("both", 0.5, [2.0, 0.0, 0.0, 0.0, 3.0]),
        ("both", 9.0, [0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_distance_by_hand(side: str, dead_zone: float, expected: list[float]) -> None:
    point = SetPoint(2.0, 1.5, 0.5, side=side, dead_zone=dead_zone)
    assert point.distance(np.array([0.0, 1.0, 1.5, 2.0, 3.5])).tolist() == expected


@pytest.mark.parametrize("side", ["both", "above", "below"])
@pytest.mark.parametrize("dead_zone", [0.0, 0.3])
def test_missing_value_has_no_distance(side: str, dead_zone: float) -> None:
    point = SetPoint(1.0, 0.0, 1.0, side=side, dead_zone=dead_zone)
    assert np.isnan(point.distance(np.array([float("nan"), float("nan")]))).all()


def test_side_and_dead_zone_are_two_sided_and_empty_by_default() -> None:
    point = SetPoint(1.0, 2.0, 1.0)
    assert point.distance(np.array([1.5, 2.5])).tolist() == [0.5, 0.5]


def test_valence_with_sides_and_dead_zones_by_hand() -> None:
    """Only entropy above 2.5 and sentiment more than 0.25 below -0.5 cost anything."""
    points = {
        "entropy": SetPoint(0.5, 2.0, 0.5, side="above", dead_zone=0.5),
        "sentiment": SetPoint(2.0, -0.5, 0.25, side="below", dead_zone=0.25),
    }
    rows = (3.0, -1.0, 0.0), (2.5, -0.75, 0.0), (0.0, 1.0, 0.0), (9.0, float("nan"), 0.0)
    found = valence(table(*rows), points)
    expected = [[-0.5, -2.0], [0.0, 0.0], [0.0, 0.0], [-6.5, float("nan")]]
    np.testing.assert_allclose(found.terms_NS, expected)
    np.testing.assert_allclose(found.total_N, [-2.5, 0.0, 0.0, float("nan")])


def test_terms_with_sides_and_dead_zones_sum_to_the_total() -> None:
    points = {
        "entropy": SetPoint(0.5, 0.1, 0.4, side="above"),
        "sentiment": SetPoint(2.0, -0.5, 0.25, side="below", dead_zone=0.1),
        "boredom": SetPoint(1.0, 0.0, 0.5, dead_zone=0.7),
    }
    found = valence(table(*np.random.default_rng(1).normal(size=(30, 3)).tolist()), points)
    assert (found.terms_NS <= 0).all()
    assert ((found.terms_NS < 0).sum(axis=0) < 30).all()
    for row in range(30):
        assert found.total_N[row] == pytest.approx(sum(float(t) for t in found.terms_NS[row]))


# --- resolve ------------------------------------------------------------------------------------


def test_auto_is_the_median_and_the_spread_of_the_base_model(calibration: Calibration) -> None:
    points = resolve({"entropy": set_point_config(weight=0.3)}, calibration)
    # IQR / 1.349 = (2.849 - 1.5) / 1.349 = 1
    assert points["entropy"].weight == 0.3
    assert points["entropy"].setpoint == 2.2
    assert points["entropy"].tolerance == pytest.approx(1.0)
    assert points["entropy"].automatic == ("setpoint", "tolerance")


def test_explicit_numbers_are_taken_as_they_are(calibration: Calibration) -> None:
    points = resolve({"entropy": set_point_config(setpoint=3, tolerance=0.5)}, calibration)
    assert points == {"entropy": SetPoint(1.0, 3.0, 0.5, ())}


@pytest.mark.parametrize(
    ("config", "setpoint", "tolerance", "automatic"),
    [
        (set_point_config(setpoint=0.0), 0.0, 0.6 / 1.349, ("tolerance",)),
        (set_point_config(tolerance=0.5), 0.1, 0.5, ("setpoint",)),
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
    point = resolve({name: set_point_config(min_tolerance=floor)}, calibration)[name]
    assert point.tolerance == pytest.approx(expected)


def test_min_tolerance_leaves_an_explicit_tolerance_alone(calibration: Calibration) -> None:
    config = set_point_config(tolerance=0.001, min_tolerance=0.05)
    assert resolve({"boredom": config}, calibration)["boredom"].tolerance == 0.001


def test_a_signal_with_weight_zero_is_ignored(calibration: Calibration) -> None:
    config = {"entropy": set_point_config(weight=0.5), "boredom": set_point_config(weight=0.0)}
    points = resolve(config, calibration)
    assert list(points) == ["entropy"]
    found = valence(table((2.2, 0.0, float("nan"))), points)
    assert found.names == ("entropy",)
    assert found.total_N[0] == 0


def test_weight_zero_needs_no_calibration(calibration: Calibration) -> None:
    assert resolve({"repetition": set_point_config(weight=0.0)}, calibration) == {}


def test_side_and_dead_zone_are_kept(calibration: Calibration) -> None:
    config = set_point_config(side="above", dead_zone=0.2)
    point = resolve({"entropy": config}, calibration)["entropy"]
    assert (point.side, point.dead_zone) == ("above", 0.2)
    # The dead zone is in the signal's unit, the tolerance is 1 and the set point 2.2.
    assert point.distance(np.array([1.0, 2.3, 2.9])).tolist() == pytest.approx([0.0, 0.0, 0.5])


@pytest.mark.parametrize(
    "config",
    [set_point_config(), set_point_config(setpoint=0.1), set_point_config(tolerance=0.1)],
)
def test_signal_that_was_never_there_has_no_automatic_set_point(config: SetPointConfig) -> None:
    never = Calibration.of({"boredom": []}, np.ones(1))
    with pytest.raises(HomeostatError) as caught:
        resolve_one("boredom", config, never)
    assert str(caught.value) == (
        "boredom could not be measured on any of the base model's turns, so it has no automatic "
        "set point; give reward.set_points.boredom a setpoint and a tolerance, or weight=0."
    )


def test_signal_that_was_never_there_may_have_an_explicit_set_point() -> None:
    never = Calibration.of({"boredom": []}, np.ones(1))
    found = resolve_one("boredom", set_point_config(setpoint=0.1, tolerance=0.2), never)
    assert found == SetPoint(1.0, 0.1, 0.2)


def test_one_signal_is_resolved_whatever_its_weight(calibration: Calibration) -> None:
    """The failures are measured for signals without weight, too."""
    found = resolve_one("entropy", set_point_config(weight=0.0), calibration)
    assert (found.weight, found.setpoint) == (0.0, 2.2)
    assert found.tolerance == pytest.approx(1.0)


# --- logarithms ---------------------------------------------------------------------------------


def test_a_logarithmic_set_point_compares_ratios() -> None:
    point = SetPoint(weight=1.0, setpoint=20.0, tolerance=np.log(2), transform="log")
    found = point.distance(np.array([20.0, 40.0, 10.0, 80.0, 0.0]))
    assert found.tolist() == pytest.approx([0.0, 1.0, 1.0, 2.0, np.inf])


def test_the_automatic_tolerance_of_a_logarithm_is_its_own_spread() -> None:
    values = {"perplexity": np.exp(np.linspace(1.0, 3.0, 101)).tolist()}
    calibration = Calibration.of(values, [1.0])
    config = set_point_config(min_tolerance=0.1, transform="log")
    found = resolve_one("perplexity", config, calibration)
    assert found.setpoint == pytest.approx(np.exp(2.0))
    assert found.tolerance == pytest.approx(1.0 / 1.349, abs=0.01)


@pytest.mark.parametrize("setpoint", [0.0, -1.0])
def test_a_set_point_without_a_logarithm_is_refused(setpoint: float) -> None:
    with pytest.raises(ValueError, match="has no logarithm"):
        set_point_config(setpoint=setpoint, transform="log")


def test_a_word_for_a_set_point_is_named_under_either_transform() -> None:
    for transform in ("none", "log"):
        with pytest.raises(
            ValueError, match=r"setpoint=low of a set point must be a number or auto"
        ):
            set_point_config(setpoint="low", transform=transform)


def test_intervals_of_what_was_measured_narrow_with_the_sample() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for count in (24, 2400):
        calibration = Calibration.of({"x": rng.normal(5.0, 2.0, count).tolist()}, [1.0])
        found = calibration.uncertainty("x")
        measured = (calibration.median("x"), calibration.spread("x"))
        for key, value in zip(("setpoint_ci95", "tolerance_ci95"), measured, strict=True):
            low, high = found[key]
            assert low < value < high, (count, key)
        widths.append(found["setpoint_ci95"][1] - found["setpoint_ci95"][0])
    assert widths[1] < widths[0] / 5
    assert Calibration.of({"x": []}, [1.0]).uncertainty("x") == {}
