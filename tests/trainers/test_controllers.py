"""The price of KL and the learning rate, by hand and in a closed loop."""

from __future__ import annotations

from math import exp

import pytest
from configs import kl_config, ppo_config

from homeostat.trainers.controllers import (
    AdaptiveKL,
    EntropyBonus,
    FixedKL,
    PidKL,
    lr_factor,
    make_kl_controller,
)


def test_a_fixed_price_never_moves() -> None:
    controller = FixedKL(kl_config(coef=0.3))
    controller.update(kl=5.0, entropy=1.0)
    assert controller.coef == 0.3


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.1, 0.2),  # on target
        (0.105, 0.2 * 1.005),  # 5% above it
        (0.5, 0.2 * 1.02),  # clipped at 20%
        (0.095, 0.2 * 0.995),
        (0.0, 0.2 * 0.98),
    ],
)
def test_adaptive_price_by_hand(kl: float, expected: float) -> None:
    controller = AdaptiveKL(kl_config(kind="adaptive", coef=0.2, target=0.1, gain=0.1))
    controller.update(kl, entropy=1.0)
    assert controller.coef == pytest.approx(expected)


PID = kl_config(
    kind="pid", coef=2.0, target=0.1, proportional=0.5, integral=0.1, derivative=0.1, relax=0.25
)


def test_pid_price_by_hand() -> None:
    controller = PidKL(PID)
    controller.update(kl=0.15, entropy=2.0)  # error 0.5, sum 0.5, change 0.5
    assert controller.coef == pytest.approx(2 * exp(0.25 + 0.05 + 0.05))
    controller.update(kl=0.15, entropy=1.0)  # entropy halved: error 1, sum 1.5, change 0.5
    assert controller.coef == pytest.approx(2 * exp(0.5 + 0.15 + 0.05))
    controller.update(kl=0.05, entropy=1.0)  # -0.5 counts a quarter: sum 1.375, change -1.125
    assert controller.coef == pytest.approx(2 * exp(-0.0625 + 0.1375 - 0.1125))


def test_pid_price_is_higher_for_collapse_than_for_exploration() -> None:
    prices = []
    for entropy in (0.5, 2.0, 8.0):
        controller = PidKL(PID)
        controller.update(kl=0.1, entropy=2.0)
        controller.update(kl=0.2, entropy=entropy)
        prices.append(controller.coef)
    assert prices == sorted(prices, reverse=True)
    assert len(set(prices)) == 3


def test_pid_price_rises_faster_than_it_falls() -> None:
    above, below = PidKL(PID), PidKL(PID)
    above.update(kl=0.15, entropy=1.0)
    below.update(kl=0.05, entropy=1.0)
    assert above.coef / 2 > 2 / below.coef > 1


def test_pid_price_stays_within_its_factor() -> None:
    controller = PidKL(kl_config(kind="pid", coef=1.0, max_factor=5.0))
    for kl in (100.0, 0.0):
        for _ in range(500):
            controller.update(kl, entropy=1.0)
            assert 1 / 5 - 1e-9 <= controller.coef <= 5 + 1e-9
        assert controller.coef == pytest.approx(5.0 if kl else 1 / 5)


@pytest.mark.parametrize("kind", ["adaptive", "pid"])
@pytest.mark.parametrize("start", [0.01, 1.0])
def test_the_kl_is_brought_to_its_target(kind: str, start: float) -> None:
    """A policy that goes as far as the price allows: KL = 0.01 / coef."""
    controller = make_kl_controller(kl_config(kind=kind, coef=start, target=0.1))
    for _ in range(600):
        controller.update(0.01 / controller.coef, entropy=1.0)
    assert controller.coef == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("kind", ["fixed", "adaptive", "pid"])
def test_a_controller_goes_on_from_its_state(kind: str) -> None:
    config = kl_config(kind=kind, coef=0.1)
    one, two = make_kl_controller(config), make_kl_controller(config)
    one.update(0.3, 2.0)
    two.load_state_dict(one.state_dict())
    for controller in (one, two):
        controller.update(0.2, 1.0)
    assert one.coef == two.coef
    assert one.state_dict() == two.state_dict()


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rate_by_hand(decay: str, expected: list[float]) -> None:
    assert [lr_factor(i, 2, 6, decay) for i in range(6)] == pytest.approx(expected)


def test_no_update_of_a_run_has_the_rate_zero() -> None:
    for decay in ("linear", "cosine"):
        for warmup in (0, 1, 3, 9):
            assert min(lr_factor(i, warmup, 4, decay) for i in range(4)) > 0


# --- entropy ------------------------------------------------------------------------------------


def entropy_bonus(coef: float = 0.0, target: float | None = 2.0) -> EntropyBonus:
    settings = {"entropy_integral": 0.1, "entropy_proportional": 0.5}
    return EntropyBonus(ppo_config(entropy_coef=coef, entropy_target=target, **settings))


def test_without_a_target_the_bonus_never_moves() -> None:
    bonus = entropy_bonus(0.3, target=None)
    bonus.update(0.01)
    assert bonus.coef == 0.3


def test_the_bonus_by_hand() -> None:
    bonus = entropy_bonus(0.1)
    assert bonus.coef == 0.1
    bonus.update(1.0)  # a nat is missing: I = 0.1 + 0.1, and 0.5 on top
    assert bonus.coef == pytest.approx(0.7)
    bonus.update(2.0)  # on target: what has been learnt stays
    assert bonus.coef == pytest.approx(0.2)
    bonus.update(2.2)  # I = 0.18, less 0.1
    assert bonus.coef == pytest.approx(0.08)


def test_the_bonus_is_no_price_and_does_not_wind_up() -> None:
    """However long the entropy was above the target, the first update below it counts."""
    bonus = entropy_bonus()
    for _ in range(100):
        bonus.update(5.0)
        assert bonus.coef == 0
    bonus.update(1.8)
    assert bonus.coef == pytest.approx(0.02 + 0.1)


def test_the_entropy_is_brought_to_its_target() -> None:
    """A policy that goes a third of the way to where the bonus lets it, update by update."""
    bonus, entropy = entropy_bonus(), 5.0
    for _ in range(200):
        bonus.update(entropy)
        entropy += (0.5 + 2 * bonus.coef - entropy) / 3
    assert entropy == pytest.approx(2.0, abs=0.01)
    assert bonus.coef == pytest.approx(0.75, abs=0.01)


def test_the_bonus_goes_on_from_its_state() -> None:
    one, two = entropy_bonus(), entropy_bonus()
    one.update(1.0)
    two.load_state_dict(one.state_dict())
    for bonus in (one, two):
        bonus.update(1.5)
    assert one.coef == two.coef
