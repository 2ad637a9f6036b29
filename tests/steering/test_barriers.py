"""Barriers by hand and against slow loops over whole distributions; signs and slopes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from configs import barrier_config
from torch import Tensor

from homeostat.config.steering import AGGREGATES
from homeostat.models import logprobs
from homeostat.steering.barriers import (
    DualControl,
    FixedControl,
    RateControl,
    aggregate_divergence,
    aggregates,
    barrier_loss,
    coefficient,
    completion_statistics,
    make_control,
    quantile_tau,
    spectral_norm,
    spectral_penalty,
)

R, D, V = 7, 5, 11
KINDS = ("kl_rev", "kl_fwd")


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, reference hidden states, unembedding and targets."""
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 9])
    return numbers(R, D, seed=0), numbers(R, D, seed=1), numbers(V, D, seed=2), targets


def probabilities(hidden: Tensor, weight: Tensor) -> list[float]:
    logits = [
        sum(h * w for h, w in zip(hidden.tolist(), row, strict=True)) for row in weight.tolist()
    ]
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def two_words(kind: str, student: float, reference: float) -> tuple[float, float]:
    """NLL and divergence where the first of two words, which came, has these probabilities."""
    rows = [torch.tensor([[p, 1 - p]]).log() for p in (student, reference)]
    nll, found = completion_statistics(rows[0], torch.tensor([0]), lambda h: h, rows[1], kind)
    assert found is not None
    return nll.item(), found.item()


# --- divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_equal_a_slow_loop_over_the_vocabulary(kind: str) -> None:
    hidden, ref_hidden, weight, targets = case()
    nll, found = completion_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden, kind)
    assert found is not None
    for r in range(R):
        p, q = probabilities(hidden[r], weight), probabilities(ref_hidden[r], weight)
        assert nll[r].item() == pytest.approx(-math.log(p[targets[r]]))
        assert found[r].item() == pytest.approx(kl(p, q) if kind == "kl_rev" else kl(q, p))


def test_two_words_by_hand() -> None:
    """Student (3/4, 1/4), reference (1/2, 1/2)."""
    nll, reverse = two_words("kl_rev", 0.75, 0.5)
    assert nll == pytest.approx(math.log(4 / 3))
    assert reverse == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    _, onward = two_words("kl_fwd", 0.75, 0.5)
    assert onward == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_a_student_that_lost_a_word_is_dear_forward_and_one_that_found_one_in_reverse() -> None:
    lost, found = (0.999, 0.5), (0.5, 0.999)
    assert two_words("kl_fwd", *lost)[1] > 2 * two_words("kl_rev", *lost)[1]
    assert two_words("kl_rev", *found)[1] > 2 * two_words("kl_fwd", *found)[1]


def test_without_a_reference_there_is_no_divergence() -> None:
    hidden, ref_hidden, weight, targets = case()
    beside, _ = completion_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden, "kl_rev")
    alone, found = completion_statistics(hidden, targets, lambda h: h @ weight.T)
    assert found is None
    assert torch.equal(alone, beside)
    with pytest.raises(ValueError, match="kind=kl_fwd needs ref_hidden"):
        completion_statistics(hidden, targets, lambda h: h @ weight.T, None, "kl_fwd")
    with pytest.raises(ValueError, match="kind=js is unknown; choose one of kl_rev, kl_fwd, none"):
        completion_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden, "js")


def test_equal_distributions_are_0_apart_to_the_bit_and_pull_nowhere() -> None:
    hidden, _, weight, targets = case()
    hidden.requires_grad_()
    for kind in KINDS:
        _, found = completion_statistics(
            hidden, targets, lambda h: h @ weight.T, hidden.detach().clone(), kind
        )
        assert found is not None
        assert found.tolist() == [0.0] * R
        (slope,) = torch.autograd.grad(found.sum(), hidden)
        torch.testing.assert_close(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("limit", "positions"), [(R * V, 7), (R * V - 1, 6), (3 * V, 3), (V, 1), (1, 1)]
)
def test_chunks_change_neither_values_nor_gradients(
    kind: str, limit: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, ref_hidden, weight, targets = case()
    hidden.requires_grad_()
    p, q = ((h @ weight.T).softmax(-1) for h in (hidden, ref_hidden))
    expected_nll = torch.stack([-p[r, targets[r]].log() for r in range(R)])
    first, second = (p, q) if kind == "kl_rev" else (q, p)
    expected = (first * (first / second).log()).sum(-1)
    weights = numbers(2, R, seed=5)
    (slope,) = torch.autograd.grad(
        (weights[0] * expected_nll).sum() + (weights[1] * expected).sum(), hidden
    )
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", limit)
    calls: list[int] = []

    def unembed(part: Tensor) -> Tensor:
        calls.append(len(part))
        return part @ weight.T

    nll, found = completion_statistics(hidden, targets, unembed, ref_hidden, kind)
    assert found is not None
    torch.testing.assert_close(nll, expected_nll)
    torch.testing.assert_close(found, expected)
    (own,) = torch.autograd.grad((weights[0] * nll).sum() + (weights[1] * found).sum(), hidden)
    torch.testing.assert_close(own, slope)
    assert max(calls) == positions


# --- aggregates ---------------------------------------------------------------------------------


def completion_with_a_loop() -> Tensor:
    """60 tokens: sound text at 0.03 nats, and 4 tokens of a loop."""
    divergence = torch.full((60,), 0.03)
    divergence[20:24] = torch.tensor([3.75, 8.1, 5.0, 4.2])
    return divergence


def test_a_loop_of_4_in_60_tokens_hides_from_the_mean_alone() -> None:
    found = aggregates(completion_with_a_loop())
    assert tuple(found) == AGGREGATES
    assert found["mean"] == pytest.approx((56 * 0.03 + 21.05) / 60, rel=1e-5)
    assert found["mean"] == pytest.approx(0.38, abs=0.01)
    assert found["rmse"] == pytest.approx(1.5, abs=0.1)
    # Sorted, position 0.95 x 59 = 56.05: a twentieth of the way from the 57th to the 58th.
    assert found["p95"] == pytest.approx(3.75 + 0.05 * 0.45, rel=1e-4)
    assert found["max"] == pytest.approx(8.1, rel=1e-5)
    assert found["cvar"] == pytest.approx((8.1 + 5.0 + 4.2) / 3, rel=1e-5)
    assert [kind for kind in AGGREGATES if found[kind] > 0.5] == ["rmse", "p95", "max", "cvar"]


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 40, 41, 100, 140])
def test_aggregates_equal_slow_loops(count: int) -> None:
    values = numbers(count, seed=count).abs()
    ranked = sorted(values.tolist())
    place = 0.95 * (count - 1)
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    worst = ranked[-next(k for k in range(1, count + 1) if 20 * k >= count) :]
    expected = {
        "mean": sum(ranked) / count,
        "rmse": math.sqrt(sum(v * v for v in ranked) / count),
        "p95": low + (place - math.floor(place)) * (high - low),
        "max": ranked[-1],
        "cvar": sum(worst) / len(worst),
    }
    for kind, value in expected.items():
        assert aggregate_divergence(values, kind).item() == pytest.approx(value, rel=1e-6)


def test_order_of_the_tokens_changes_no_aggregate() -> None:
    values = completion_with_a_loop()
    shuffled = values[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    for kind in AGGREGATES:
        torch.testing.assert_close(
            aggregate_divergence(values, kind), aggregate_divergence(shuffled, kind)
        )


@pytest.mark.parametrize("kind", AGGREGATES)
def test_every_aggregate_falls_when_all_divergences_fall(kind: str) -> None:
    values = completion_with_a_loop().requires_grad_()
    (slope,) = torch.autograd.grad(aggregate_divergence(values, kind), values)
    assert bool((slope >= 0).all())
    assert float(slope.sum()) > 0
    assert aggregate_divergence(0.9 * values, kind) < aggregate_divergence(values, kind)


@pytest.mark.parametrize("kind", AGGREGATES)
def test_slope_is_finite_where_nothing_diverges(kind: str) -> None:
    """The square root of rmse has an infinite slope at 0, and inf x 0 would be NaN."""
    hidden, _, weight, targets = case()
    hidden.requires_grad_()
    _, found = completion_statistics(
        hidden, targets, lambda h: h @ weight.T, hidden.detach(), "kl_rev"
    )
    assert found is not None
    value = aggregate_divergence(found, kind)
    assert value.item() == pytest.approx(1e-4 if kind == "rmse" else 0.0, abs=1e-8)
    (slope,) = torch.autograd.grad(value, hidden)
    torch.testing.assert_close(slope, torch.zeros_like(slope))


def test_unknown_aggregate_is_refused() -> None:
    with pytest.raises(ValueError, match="kind=median is unknown; choose one of mean, rmse"):
        aggregate_divergence(torch.ones(3), "median")


# --- barrier and control ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "slope"), [(0.8, 0.3, 1.0), (0.5, 0.0, 0.0), (0.2, 0.0, 0.0)]
)
def test_barrier_by_hand(value: float, expected: float, slope: float) -> None:
    own = torch.tensor(value, requires_grad=True)
    loss = barrier_loss(own, tau=0.5)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.grad(loss, own)[0].item() == slope


@pytest.mark.parametrize(
    ("power", "round_", "expected"),
    [(0.0, 7, 0.4), (1.0, 0, 0.4), (1.0, 2, 1.2), (2.0, 2, 3.6), (-1.0, 3, 0.1)],
)
def test_weight_over_rounds(power: float, round_: int, expected: float) -> None:
    config = barrier_config(coef=0.4, coef_power=power)
    assert coefficient(config, round_) == pytest.approx(expected)
    assert make_control(config, 0.5, round_).coef == pytest.approx(expected)


def test_a_fixed_weight_never_moves() -> None:
    control = make_control(barrier_config(coef=0.3), tau=0.5, round=0)
    assert type(control) is FixedControl
    control.update(9.0)
    assert control.coef == 0.3
    assert control.loss(torch.tensor(0.9)).item() == pytest.approx(0.12)
    assert control.loss(torch.tensor(0.4)).item() == 0


def test_dual_weight_by_hand() -> None:
    control = make_control(barrier_config(coef=0.3, control="dual", dual_lr=0.5), 1.0, 0)
    assert type(control) is DualControl
    control.update(1.4)
    assert control.coef == pytest.approx(0.5)
    assert control.loss(torch.tensor(3.0)).item() == pytest.approx(1.0)
    control.update(0.2)
    assert control.coef == pytest.approx(0.1)
    control.update(0.5)
    assert control.coef == 0


def test_tau_follows_the_firing_by_hand() -> None:
    config = barrier_config(control="rate", firing_rate=0.25, rate_lr=0.4, tau=1.0, coef=0.3)
    control = make_control(config, 1.0, 0)
    assert type(control) is RateControl
    control.update(1.5)  # above tau: it fired, a quarter was wanted
    assert control.tau == pytest.approx(math.exp(0.3))
    control.update(1.2)  # below the new tau
    assert control.tau == pytest.approx(math.exp(0.2))
    assert control.loss(torch.tensor(2.0)).item() == pytest.approx(0.3 * (2 - math.exp(0.2)))
    assert control.coef == 0.3


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_barrier_fires_as_often_as_it_is_asked_to_on_any_scale(scale: float) -> None:
    """A divergence that grows fourfold all along; a fixed tau would fire in every late step."""
    rng, steps = np.random.default_rng(0), 400
    values = scale * rng.lognormal(0, 0.7, steps) * 4 ** (np.arange(steps) / steps)
    config = barrier_config(control="rate", firing_rate=0.25, rate_lr=0.3, tau=1.0)
    control = make_control(config, float(np.quantile(values[:20], 0.75)), 0)
    first, fired = control.tau, []
    for value in values.tolist():
        fired.append(value > control.tau)
        control.update(value)
    off = math.log(control.tau / first) / (0.3 * steps)
    assert float(np.mean(fired)) - 0.25 == pytest.approx(off)
    assert abs(off) < 0.03
    assert float(np.mean(values[-100:] > first)) > 0.6


@pytest.mark.parametrize("kind", ["dual", "rate"])
def test_control_goes_on_from_its_state(kind: str) -> None:
    config = barrier_config(control=kind, coef=1.0)
    control, other = make_control(config, 0.5, 0), make_control(config, 0.5, 0)
    control.update(2.5)
    other.load_state_dict(control.state_dict())
    assert (other.coef, other.tau) == (control.coef, control.tau) != (1.0, 0.5)


def settled(control: FixedControl) -> float:
    """Mean D of a student x that is drawn to 3 while D = x^2, after a long descent."""
    x, seen = torch.zeros((), requires_grad=True), []
    for _ in range(1500):
        divergence = x**2
        loss = 0.5 * (x - 3) ** 2 + control.loss(divergence)
        (slope,) = torch.autograd.grad(loss, x)
        x = (x - 0.02 * slope).detach().requires_grad_()
        control.update(float(divergence.detach()))
        seen.append(float(divergence.detach()))
    return float(np.mean(seen[-500:]))


@pytest.mark.parametrize(("tau", "coef"), [(1.0, 0.0), (2.0, 0.2), (0.5, 5.0)])
def test_dual_control_holds_the_divergence_at_its_set_point(tau: float, coef: float) -> None:
    config = barrier_config(control="dual", coef=coef, dual_lr=0.02)
    assert settled(make_control(config, tau, 0)) == pytest.approx(tau, rel=0.03)


def test_a_small_fixed_weight_lets_the_divergence_settle_elsewhere() -> None:
    """Where x - 3 + 2 coef x = 0, whatever tau is."""
    found = settled(make_control(barrier_config(coef=0.2), tau=1.0, round=0))
    assert found == pytest.approx((3 / 1.4) ** 2, rel=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_taus_of_one_pilot_make_every_aggregate_fire_equally_often(rate: float) -> None:
    steps = [3 * numbers(30, seed=s).abs() ** (1 + s % 3) for s in range(40)]
    pilot = {kind: [float(aggregate_divergence(d, kind)) for d in steps] for kind in AGGREGATES}
    taus = {kind: quantile_tau(values, rate) for kind, values in pilot.items()}
    fired = {kind: sum(v > taus[kind] for v in values) for kind, values in pilot.items()}
    assert set(fired.values()) == {round(rate * 40)}
    assert taus["mean"] < taus["rmse"] < taus["max"]


def test_tau_by_hand() -> None:
    assert quantile_tau([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile_tau([7.0], 0.3) == 7.0
    with pytest.raises(ValueError, match="a pilot without steps gives no tau"):
        quantile_tau([], 0.5)


# --- spectral penalty ---------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "wide", "high"), [(1, 9, 6), (4, 9, 6), (4, 6, 9), (8, 5, 3)])
def test_spectral_norm_and_its_gradient_are_those_of_the_product(
    rank: int, wide: int, high: int
) -> None:
    down = numbers(rank, wide, seed=0).requires_grad_()
    up = numbers(high, rank, seed=1).requires_grad_()
    found = spectral_norm(down, up, 0.5)
    expected = torch.linalg.matrix_norm(0.5 * up @ down, 2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    own = torch.autograd.grad(found, (down, up))
    for slope, reference in zip(own, torch.autograd.grad(expected, (down, up)), strict=True):
        torch.testing.assert_close(slope, reference, rtol=1e-4, atol=1e-5)


def test_spectral_penalty_is_the_mean_over_layers() -> None:
    pairs = [(numbers(2, 5, seed=s), numbers(4, 2, seed=10 + s), 2.0 + s) for s in range(3)]
    norms = [scale * torch.linalg.matrix_norm(up @ down, 2).item() for down, up, scale in pairs]
    assert spectral_penalty(pairs).item() == pytest.approx(sum(norms) / 3, rel=1e-6)


def test_a_fresh_adapter_has_no_spectral_norm_and_is_pulled_nowhere() -> None:
    down = numbers(3, 5, seed=0).requires_grad_()
    up = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    found = spectral_penalty([(down, up, 2.0)])
    assert found.item() == 0
    for slope in torch.autograd.grad(found, (down, up)):
        assert not slope.any()
