from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.config import TinyModelConfig
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.signals.trace import batches_by_length, pooled_user_turns, trace
from homeostat.types import Conversation, Trace, Turn

NORM_LAYERS, PROBE_LAYERS = (0, 2), (1, 2)
CLOSE = {"abs": 1e-4, "rel": 1e-4}


@pytest.fixture
def conversations(talk: Callable[..., Conversation]) -> list[Conversation]:
    """Three conversations of different lengths; one has a reply that nobody sampled."""
    cut = talk("a bé c", "long reply 🙂 text", "ok?", "er", ended=False)
    said = talk("so", "first", "and then", "second", "bye").turns
    mixed = (said[0], Turn("assistant", "prefilled"), *said[2:])
    return [talk("hello", "hi there", "what?", "no", "bye"), cut, Conversation(mixed)]


@pytest.fixture
def stirred(make_policy: Callable[..., Policy], stir: Callable[[Policy], None]) -> Policy:
    policy = make_policy()
    stir(policy)
    return policy


def critic(hidden: Tensor) -> Tensor:
    return hidden.sum(dim=-1) + hidden[:, 0]


def full_pass(model: torch.nn.Module, ids: list[int]) -> tuple[list[list[float]], list[np.ndarray]]:
    """Log-probabilities of every next token at every place, and every hidden state."""
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
    rows = []
    for logits in output.logits[0].double().tolist():
        total = math.log(sum(math.exp(logit) for logit in logits))
        rows.append([logit - total for logit in logits])
    return rows, [state[0].double().numpy() for state in output.hidden_states]


def slow_rows(policy: Policy, base: torch.nn.Module, talk: Conversation) -> list[dict[str, float]]:
    """The numbers of every response token, token by token from full logits."""
    stream = policy.encode(talk)
    log_p, states = full_pass(policy.model, stream.ids)
    log_q, _ = full_pass(base, stream.ids)
    rows = []
    for t, (token, turn, response) in enumerate(
        zip(stream.ids, stream.turn, stream.response, strict=True)
    ):
        if response:
            p, q, final = log_p[t - 1], log_q[t - 1], states[-1][t - 1]
            row = {
                "turn_R": turn,
                "logprob_R": p[token],
                "entropy_R": -sum(math.exp(lp) * lp for lp in p),
                "ref_logprob_R": q[token],
                "kl_R": sum(math.exp(lp) * (lp - lq) for lp, lq in zip(p, q, strict=True)),
                "value_R": sum(final) + final[0],
            }
            for at, layer in enumerate(NORM_LAYERS):
                row[f"norm {at}"] = math.sqrt(sum(x * x for x in states[layer + 1][t]))
            rows.append(row)
    return rows


def slow_pooled(model: torch.nn.Module, policy: Policy, talk: Conversation) -> np.ndarray:
    """Mean over the tokens of every user turn at every probe layer."""
    stream = policy.encode(talk)
    _, states = full_pass(model, stream.ids)
    turns = [i for i, turn in enumerate(talk.turns) if turn.role == "user"]
    return np.array(
        [
            [
                np.mean(
                    [states[layer + 1][t] for t, own in enumerate(stream.turn) if own == turn], 0
                )
                for layer in PROBE_LAYERS
            ]
            for turn in turns
        ]
    )


def assert_equal_traces(found: Sequence[Trace], expected: Sequence[Trace]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.user_turns == other.user_turns
        for name, value in vars(one).items():
            if name != "user_turns" and value is not None:
                np.testing.assert_allclose(value, getattr(other, name), rtol=1e-4, atol=1e-5)


def base_model() -> torch.nn.Module:
    """The base without any adapter, independent of the policy's own."""
    config = TinyModelConfig(name="tiny_random")
    model: torch.nn.Module = load_tiny(config, torch.device("cpu"), torch.float32).model
    return model


def test_every_column_equals_a_slow_reference(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    found = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS, critic)
    base = base_model()
    for talk, own in zip(conversations, found, strict=True):
        rows = slow_rows(stirred, base, talk)
        assert len(own.turn_R) == len(rows) > 5
        assert max(row["kl_R"] for row in rows) > 0.01
        assert own.value_R is not None
        for r, row in enumerate(rows):
            assert own.norm_RL[r].tolist() == pytest.approx([row["norm 0"], row["norm 1"]], **CLOSE)
            for name in ("turn_R", "logprob_R", "entropy_R", "ref_logprob_R", "kl_R", "value_R"):
                assert getattr(own, name)[r] == pytest.approx(row[name], **CLOSE), name


def test_pooled_hidden_states_are_means_over_the_users_tokens(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    base = base_model()
    for talk, own in zip(
        conversations, trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS), strict=True
    ):
        assert own.user_turns == tuple(i for i, t in enumerate(talk.turns) if t.role == "user")
        ref, policy = (slow_pooled(model, stirred, talk) for model in (base, stirred.model))
        assert np.abs(ref - policy).max() > 0.01
        np.testing.assert_allclose(own.hidden_ref, ref, atol=1e-4)
        np.testing.assert_allclose(own.hidden_policy, policy, atol=1e-4)


def test_trace_does_not_depend_on_the_batch(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    together = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS, critic)
    alone = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS, critic, max_tokens=1)
    turned = trace(stirred, conversations[::-1], NORM_LAYERS, PROBE_LAYERS, critic, max_tokens=300)
    assert_equal_traces(alone, together)
    assert_equal_traces(turned[::-1], together)


def test_within_reference_the_policy_is_its_own_reference(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    outside = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS)
    with stirred.reference():
        within = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS)
    for own, other in zip(within, outside, strict=True):
        assert own.kl_R.tolist() == [0.0] * len(own.kl_R)
        assert np.array_equal(own.logprob_R, own.ref_logprob_R)
        assert np.array_equal(own.hidden_policy, own.hidden_ref)
        np.testing.assert_allclose(own.logprob_R, other.ref_logprob_R, atol=1e-5)
        np.testing.assert_allclose(own.hidden_ref, other.hidden_ref, atol=1e-5)
        assert np.abs(own.logprob_R - other.logprob_R).max() > 0.01


def test_fresh_adapter_has_no_kl(
    make_policy: Callable[..., Policy], conversations: list[Conversation]
) -> None:
    for own in trace(make_policy(), conversations, (), PROBE_LAYERS):
        assert np.abs(own.kl_R).max() < 1e-5
        assert np.array_equal(own.logprob_R, own.ref_logprob_R)
        assert np.array_equal(own.hidden_policy, own.hidden_ref)


def test_what_is_not_asked_for_is_empty(stirred: Policy, conversations: list[Conversation]) -> None:
    for own in trace(stirred, conversations):
        assert own.value_R is None
        assert own.norm_RL.shape == (len(own.turn_R), 0)
        assert own.hidden_ref.size == own.hidden_policy.size == 0


def test_progress_counts_conversations_and_tokens(
    make_policy: Callable[..., Policy], conversations: list[Conversation]
) -> None:
    policy, told = make_policy(), []

    def progress(done: int, total: int, tokens: int = 0) -> None:
        told.append((done, total, tokens))

    trace(policy, conversations, max_tokens=1, progress=progress)
    lengths = sorted((len(policy.encode(talk).ids) for talk in conversations), reverse=True)
    assert told == [(n + 1, 3, length) for n, length in enumerate(lengths)]


def test_pooled_user_turns_equal_the_hidden_ref_of_a_trace(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    found = trace(stirred, conversations, (), PROBE_LAYERS)
    turns = [2, 0, 4]
    streams = [stirred.encode(talk) for talk in conversations]
    pooled = pooled_user_turns(stirred, streams, turns, PROBE_LAYERS)
    expected = [
        own.hidden_ref[own.user_turns.index(t)] for own, t in zip(found, turns, strict=True)
    ]
    np.testing.assert_allclose(pooled.numpy(), np.stack(expected), atol=1e-5)
    assert stirred.adapter_on


def test_pooled_user_turn_does_not_depend_on_what_follows(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    talk = conversations[0]
    shorter = Conversation(talk.turns[:3])
    streams = [stirred.encode(talk), stirred.encode(shorter)]
    whole, cut = pooled_user_turns(stirred, streams, [2, 2], PROBE_LAYERS)
    np.testing.assert_allclose(whole.numpy(), cut.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([5, 3, 9, 1], 10, [[2], [0, 1], [3]]),
        ([5, 3, 9, 1], 100, [[2, 0, 1, 3]]),
        ([4, 4, 4], 8, [[0, 1], [2]]),
        ([20, 2, 2], 6, [[0], [1, 2]]),
        ([], 6, []),
    ],
)
def test_batches_by_hand(lengths: list[int], limit: int, expected: list[list[int]]) -> None:
    assert batches_by_length(lengths, limit) == expected


@pytest.mark.parametrize("seed", range(5))
def test_batches_cover_every_index_once_and_keep_the_bound(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 120) for _ in range(60)]
    batches = batches_by_length(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    assert any(len(batch) > 1 for batch in batches)
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 100
