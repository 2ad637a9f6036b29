from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.forward import WORTH_SHARING, forward, make_batch, read_prefix, shared_prefix
from homeostat.types import Conversation, TokenBatch, TokenStream, Turn

SYSTEM = "Be brief and be kind."
CPU = torch.device("cpu")


def template_then(content: int, *ids: int) -> TokenStream:
    """A stream whose first turn begins at token ``content``."""
    turn = [-1] * content + [0] * (len(ids) - content)
    return TokenStream(list(ids), turn, [False] * len(ids))


@pytest.fixture
def prompted(talk: Callable[..., Conversation]) -> list[Conversation]:
    """Conversations of different lengths under one system prompt; all first words begin alike."""
    said = [
        talk("hello", "hi there", "what?", "no", "bye"),
        talk("help me", "er", ended=False),
        talk("he"),
    ]
    return [Conversation((Turn("system", SYSTEM), *one.turns)) for one in said]


@pytest.fixture
def stirred(make_policy: Callable[..., Policy], stir: Callable[[Policy], None]) -> Policy:
    policy = make_policy()
    stir(policy)
    return policy


def alone(policy: Policy, stream: TokenStream) -> Tensor:
    """Final hidden states of one conversation, from the plain model."""
    ids = torch.tensor([stream.ids])
    hidden: Tensor = policy.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]
    return hidden


def assert_rows_equal_plain_passes(
    policy: Policy, batch: TokenBatch, streams: list[TokenStream], hidden: Tensor
) -> None:
    assert hidden.shape[:2] == batch.input_ids.shape
    for row, stream in enumerate(streams):
        own = hidden[row][batch.attention_mask[row]]
        expected = alone(policy, stream)[len(batch.prefix) :]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_shared_prefix_is_the_system_prompt_up_to_the_first_words(
    stirred: Policy, prompted: list[Conversation]
) -> None:
    streams = [stirred.encode(talk) for talk in prompted]
    text = stirred.tokenizer.decode(streams[0].ids[: shared_prefix(streams)])
    assert text == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"


def test_shared_prefix_ends_where_the_templates_part() -> None:
    same = range(WORTH_SHARING + 3)
    streams = [template_then(30, *same, *[7] * 30), template_then(30, *same, *[8] * 30)]
    assert shared_prefix(streams) == WORTH_SHARING + 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_shared_prefix_ends_at_the_earliest_first_turn(order: tuple[int, int]) -> None:
    both = [template_then(20, *range(40)), template_then(12, *range(40))]
    assert shared_prefix([both[i] for i in order]) == 12


def test_one_stream_shares_nothing() -> None:
    assert shared_prefix([template_then(30, *range(40))]) == 0


@pytest.mark.parametrize(("common", "expected"), [(8, 8), (7, 0), (0, 0)])
def test_short_prefix_is_not_worth_sharing(common: int, expected: int) -> None:
    streams = [
        template_then(20, *range(common), *[90] * 30),
        template_then(20, *range(common), *[91] * 30),
    ]
    assert shared_prefix(streams) == expected


def test_without_a_prefix_nothing_is_read(
    make_policy: Callable[..., Policy], prompted: list[Conversation]
) -> None:
    policy = make_policy()
    batch = pad([policy.encode(talk) for talk in prompted], policy.pad_id, CPU)
    assert read_prefix(policy, batch) is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter on", "adapter off"])
@pytest.mark.parametrize("sharing", [True, False], ids=["prefix", "no prefix"])
@torch.no_grad()
def test_forward_equals_the_plain_pass_of_each_conversation(
    stirred: Policy, prompted: list[Conversation], side: str, adapter: bool, sharing: bool
) -> None:
    streams = [stirred.encode(talk) for talk in prompted]
    shared = shared_prefix(streams) if sharing else 0
    assert (shared > WORTH_SHARING) == sharing
    batch = pad(streams, stirred.pad_id, CPU, side, shared)
    with nullcontext() if adapter else stirred.reference():
        hidden = forward(stirred, batch, read_prefix(stirred, batch))
        assert_rows_equal_plain_passes(stirred, batch, streams, hidden)


@torch.no_grad()
def test_prefix_of_the_reference_is_another_than_the_policys(
    stirred: Policy, prompted: list[Conversation]
) -> None:
    streams = [stirred.encode(talk) for talk in prompted]
    batch = pad(streams, stirred.pad_id, CPU, shared=shared_prefix(streams))
    own = read_prefix(stirred, batch)
    with stirred.reference():
        base = read_prefix(stirred, batch)
    assert own is not None
    assert base is not None
    assert (own.layers[0].values - base.layers[0].values).abs().max() > 0.01


@torch.no_grad()
def test_prefix_keeps_nothing_of_the_rows(stirred: Policy, prompted: list[Conversation]) -> None:
    streams = [stirred.encode(talk) for talk in prompted]
    shared = shared_prefix(streams)
    first = pad(streams, stirred.pad_id, CPU, shared=shared)
    second = pad(streams[:0:-1], stirred.pad_id, CPU, "left", shared)
    prefix = read_prefix(stirred, first)
    assert prefix is not None
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.layers]
    assert len(before) == stirred.num_layers
    for batch, rows in ((first, streams), (second, streams[:0:-1])):
        assert_rows_equal_plain_passes(stirred, batch, rows, forward(stirred, batch, prefix))
        assert prefix.get_seq_length() == shared
        for layer, (keys, values) in zip(prefix.layers, before, strict=True):
            assert keys.shape[:1] + keys.shape[2:3] == (1, shared)
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)


def test_gradients_flow_through_the_prefix_as_through_plain_passes(
    stirred: Policy, prompted: list[Conversation]
) -> None:
    streams = [stirred.encode(talk) for talk in prompted]
    parameters = stirred.adapter_parameters()
    batch = make_batch(stirred, streams)
    prefix = read_prefix(stirred, batch)
    assert prefix is not None
    hidden = forward(stirred, batch, prefix)
    # Not their squares, which the final norm makes the same whatever the weights: that gradient is
    # rounding, another on every processor.
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    shared = torch.autograd.grad((hidden[batch.attention_mask] @ direction).sum(), parameters)
    plain = torch.stack(
        [(alone(stirred, stream)[len(batch.prefix) :] @ direction).sum() for stream in streams]
    )
    for own, expected in zip(shared, torch.autograd.grad(plain.sum(), parameters), strict=True):
        assert expected.norm() > 0.1
        assert (own - expected).norm() < 1e-4 * expected.norm()
