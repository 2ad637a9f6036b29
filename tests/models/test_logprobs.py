from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from homeostat.models import logprobs
from homeostat.models.logprobs import TokenStatistics, predicting_hidden, token_statistics

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


def test_two_tokens_by_hand() -> None:
    """Policy (3/4, 1/4), reference (1/2, 1/2): the KL goes from the policy to the reference."""
    hidden = torch.tensor([[math.log(3.0), 0.0]])
    found = token_statistics(hidden, torch.tensor([1]), lambda h: h, torch.zeros(1, 2))
    assert found.logprob.item() == pytest.approx(math.log(0.25))
    assert found.ref_logprob.item() == pytest.approx(math.log(0.5))
    assert found.entropy.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert found.kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


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
    columns = (found.logprob, found.entropy, found.ref_logprob, found.kl)
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
        rows.append((p[targets[r]].log(), entropy, q[targets[r]].log(), kl))
    return TokenStatistics(*(torch.stack(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize("chunk", [3, 256])
def test_gradients_equal_those_of_the_slow_computation(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    hidden, ref_hidden, weight, targets = case()
    leaves = (hidden.requires_grad_(), ref_hidden.requires_grad_(), weight.requires_grad_())
    found = token_statistics(hidden, targets, lambda h: h @ weight.T, ref_hidden)
    slow = slow_statistics(hidden, targets, weight, ref_hidden)
    own = torch.autograd.grad(objective(found), leaves)
    expected = torch.autograd.grad(objective(slow), leaves)
    for gradient, reference in zip(own, expected, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(gradient, reference)


def test_result_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, ref_hidden, weight, targets = case()
    calls: list[int] = []

    def unembed(part: Tensor) -> Tensor:
        calls.append(len(part))
        return part @ weight.T

    whole = token_statistics(hidden, targets, unembed, ref_hidden)
    assert calls == [R, R]
    monkeypatch.setattr(logprobs, "CHUNK", 3)
    calls.clear()
    parts = token_statistics(hidden, targets, unembed, ref_hidden)
    assert calls == [3, 3, 3, 3, 1, 1]
    for name in ("logprob", "entropy", "ref_logprob", "kl"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_each_response_token_gets_the_hidden_state_before_it() -> None:
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[False, True, False, True], [False, False, True, True]])
    assert predicting_hidden(hidden, mask)[:, 0].tolist() == [0.0, 2.0, 5.0, 6.0]


def test_response_token_at_the_beginning_is_refused() -> None:
    mask = torch.tensor([[False, True], [True, False]])
    with pytest.raises(ValueError, match="cannot begin with a response token"):
        predicting_hidden(torch.zeros(2, 2, 3), mask)
