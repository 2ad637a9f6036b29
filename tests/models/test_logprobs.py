from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from homeostat.models import logprobs
from homeostat.models.logprobs import (
    TokenStatistics,
    predicting_hidden,
    token_logprobs,
    token_statistics,
)

R, D, V = 7, 5, 11


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, reference hidden states, unembedding and targets."""
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 9])
    return numbers(R, D, seed=0), numbers(R, D, seed=1), numbers(V, D, seed=2), targets


def log_probabilities(hidden: Tensor, weight: Tensor) -> list[float]:
    logits = [
        sum(h * w for h, w in zip(hidden.tolist(), row, strict=True)) for row in weight.tolist()
    ]
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [logit - total for logit in logits]


def test_statistics_equal_a_slow_loop_over_full_logits() -> None:
    hidden, ref_hidden, weight, targets = case()
    found = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    for r in range(R):
        log_p = log_probabilities(hidden[r], weight)
        log_q = log_probabilities(ref_hidden[r], weight)
        entropy = -sum(math.exp(p) * p for p in log_p)
        kl = sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
        assert found.logprob[r].item() == pytest.approx(log_p[targets[r]])
        assert found.ref_logprob[r].item() == pytest.approx(log_q[targets[r]])
        assert found.entropy[r].item() == pytest.approx(entropy)
        assert found.kl[r].item() == pytest.approx(kl)
        assert found.certainty[r].item() == pytest.approx(-sum(log_p) / V - math.log(V))


def test_two_tokens_by_hand() -> None:
    """Policy (3/4, 1/4), reference (1/2, 1/2): the KL goes from the policy to the reference."""
    hidden = torch.tensor([[math.log(3.0), 0.0]])
    found = token_statistics(hidden, torch.tensor([1]), lambda h: h, torch.zeros(1, 2))
    assert found.logprob.item() == pytest.approx(math.log(0.25))
    assert found.ref_logprob.item() == pytest.approx(math.log(0.5))
    assert found.entropy.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert found.kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.certainty.item() == pytest.approx(0.5 * math.log(4 / 3))


@pytest.mark.parametrize("level", [0.0, -7.0, 300.0])
def test_uniform_logits_have_no_certainty(level: float) -> None:
    targets = torch.zeros(2, dtype=torch.long)
    found = token_statistics(torch.full((2, V), level), targets, lambda h: h)
    assert found.certainty.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_certainty_is_positive_and_has_no_bound() -> None:
    """Negative entropy plus log V is also 0 for uniform logits, but ends at log V."""
    peaked = torch.tensor([[1.0], [4.0], [100.0]]) * torch.eye(4)[:1]
    found = token_statistics(peaked, torch.zeros(3, dtype=torch.long), lambda h: h)
    low, middle, high = found.certainty.tolist()
    assert 0 < low < middle < high
    assert high == pytest.approx(75 - math.log(4))


def test_certainty_is_the_policys_not_the_references() -> None:
    hidden, ref_hidden, weight, targets = case()
    alone = token_statistics(hidden, targets, lambda h: h @ weight.T)
    beside = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    assert torch.equal(alone.certainty, beside.certainty)


def test_without_a_reference_the_policy_is_its_own() -> None:
    hidden, ref_hidden, weight, targets = case()
    alone = token_statistics(hidden, targets, lambda h: h @ weight.T)
    beside = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    assert torch.equal(alone.logprob, beside.logprob)
    assert torch.equal(alone.entropy, beside.entropy)
    assert torch.equal(alone.ref_logprob, alone.logprob)
    assert alone.kl.tolist() == [0.0] * R


def objective(found: TokenStatistics) -> Tensor:
    """A number that depends on every statistic of every token, each with a weight of its own."""
    columns = (found.logprob, found.entropy, found.ref_logprob, found.kl, found.certainty)
    return sum((numbers(R, seed=10 + i) * c).sum() for i, c in enumerate(columns))  # type: ignore[return-value]


def slow_statistics(
    hidden: Tensor, targets: Tensor, weight: Tensor, ref_hidden: Tensor
) -> TokenStatistics:
    """The same from full logits, row by row, without chunks and without checkpoints."""
    rows = []
    for r in range(R):
        p, q = (
            (h @ weight.T).exp() / (h @ weight.T).exp().sum() for h in (hidden[r], ref_hidden[r])
        )
        entropy, kl = -(p * p.log()).sum(), (p * (p / q).log()).sum()
        certainty = (torch.full_like(p, 1 / V) * (1 / V / p).log()).sum()
        rows.append((p[targets[r]].log(), entropy, q[targets[r]].log(), kl, certainty))
    return TokenStatistics(*(torch.stack(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize("limit", [3 * V, 256 * V])
def test_gradients_equal_those_of_the_slow_computation(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", limit)
    hidden, ref_hidden, weight, targets = case()
    leaves = (hidden.requires_grad_(), ref_hidden.requires_grad_(), weight.requires_grad_())
    found = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    slow = slow_statistics(hidden, targets, weight, ref_hidden)
    own = torch.autograd.grad(objective(found), leaves)
    expected = torch.autograd.grad(objective(slow), leaves)
    for gradient, reference in zip(own, expected, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize(
    ("limit", "positions"), [(R * V, 7), (R * V - 1, 6), (3 * V, 3), (V, 1), (1, 1)]
)
def test_result_does_not_depend_on_how_many_logits_exist_at_once(
    limit: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position is the least that can be read, however large the vocabulary."""
    hidden, ref_hidden, weight, targets = case()
    whole = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", limit)
    calls: list[int] = []

    def unembed(part: Tensor) -> Tensor:
        calls.append(len(part))
        return part @ weight.T

    parts = token_statistics(hidden, targets, unembed, ref_hidden)
    assert max(calls) == positions
    for name, value in vars(whole).items():
        assert len(value) == R
        torch.testing.assert_close(getattr(parts, name), value)


def test_each_response_token_gets_the_hidden_state_before_it() -> None:
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[False, True, False, True], [False, False, True, True]])
    assert predicting_hidden(hidden, mask)[:, 0].tolist() == [0.0, 2.0, 5.0, 6.0]


def test_response_token_at_the_beginning_is_refused() -> None:
    mask = torch.tensor([[False, True], [True, False]])
    with pytest.raises(ValueError, match="cannot begin with a response token"):
        predicting_hidden(torch.zeros(2, 2, 3), mask)


@pytest.mark.parametrize("limit", [3 * V, 256 * V])
def test_log_probabilities_alone_are_those_of_the_statistics(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", limit)
    hidden, _, weight, targets = case()
    hidden.requires_grad_()
    alone = token_logprobs(hidden, targets, lambda h: h @ weight.T)
    among = token_statistics(hidden, targets, lambda h: h @ weight.T).logprob
    assert torch.equal(alone, among)
    (own,) = torch.autograd.grad(alone.square().sum(), hidden)
    (expected,) = torch.autograd.grad(among.square().sum(), hidden)
    torch.testing.assert_close(own, expected)


def test_statistics_are_split_into_those_of_each_reply() -> None:
    hidden, ref_hidden, weight, targets = case()
    whole = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    first, none, last = whole.split([2, 0, R - 2])
    assert torch.equal(first.kl, whole.kl[:2])
    assert len(none.kl) == 0
    assert torch.equal(last.certainty, whole.certainty[2:])
