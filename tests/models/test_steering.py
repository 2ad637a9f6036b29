"""Steering acts where replies are decoded, by its dose, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.forward import forward, make_batch, predicted_index, read_prefix
from homeostat.models.hooks import Steering, decoder_layers, read_residual
from homeostat.models.logprobs import predicting_hidden, token_statistics
from homeostat.rollout.generate import Sampler
from homeostat.types import TokenStream

LAYER = 1


def stream(prompt: int, reply: int, start: int = 5) -> TokenStream:
    ids = [(start + 7 * i) % 200 for i in range(prompt + reply)]
    turn, response = [-1] * prompt + [0] * reply, [False] * prompt + [True] * reply
    return TokenStream(ids, turn, response)


def steering(policy: Policy, dose: float | Sequence[float], **options: float | bool) -> Steering:
    vector = torch.linspace(-1, 2, policy.hidden_size)
    return Steering({LAYER: vector}, torch.tensor(dose).reshape(-1), **options)


@torch.no_grad()
def residual(policy: Policy, streams: Sequence[TokenStream], side: str = "right") -> Tensor:
    seen: list[Tensor] = []
    with read_residual(policy.trunk, (LAYER,), lambda _, hidden: seen.append(hidden)):
        forward(policy, pad(streams, policy.pad_id, policy.device, side))
    return seen[-1]


def test_the_index_counts_the_reply_tokens_that_positions_predict() -> None:
    both = [
        stream(3, 2),
        TokenStream([1] * 7, [0] * 7, [False, True, True, False, False, True, True]),
    ]
    batch = pad(both, 0, torch.device("cpu"))
    assert predicted_index(batch).tolist() == [
        [-1, -1, 0, 1, -1, -1, -1],
        [0, 1, -1, -1, 0, 1, -1],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_vector_is_added_where_tokens_are_decoded_and_never_on_padding(
    make_policy: Callable[..., Policy], side: str
) -> None:
    policy = make_policy()
    streams = [stream(4, 3), stream(2, 1)]
    plain = residual(policy, streams, side)
    own = steering(policy, [2.0, 0.5])
    with policy.steered(own):
        steered = residual(policy, streams, side)
    shift = steered - plain
    index = predicted_index(pad(streams, policy.pad_id, policy.device, side))
    for row, dose in enumerate([2.0, 0.5]):
        for at in range(shift.shape[1]):
            expected = dose * own.vectors[LAYER] * bool(index[row, at] >= 0)
            assert torch.allclose(shift[row, at], expected, atol=1e-5)
    assert int((index >= 0).sum()) == 4


@pytest.mark.parametrize("prefix", [False, True])
def test_everywhere_means_in_prompts_too(make_policy: Callable[..., Policy], prefix: bool) -> None:
    """Also in what rows share and is read once; a reply then depends on a steered prompt."""
    policy = make_policy()
    head = stream(20 if prefix else 0, 0).ids
    streams = [
        TokenStream([*head, *r.ids], [-1] * len(head) + r.turn, [False] * len(head) + r.response)
        for r in (stream(4, 3, start=60), stream(2, 1, start=90))
    ]
    own = steering(policy, 2.0, everywhere=True)
    batch = make_batch(policy, streams)
    assert bool(batch.prefix) == prefix

    @torch.no_grad()
    def hand(layer_input: Sequence[TokenStream]) -> list[Tensor]:
        """One row at a time, the vector added to the block's output by a hook of the test."""
        found = []
        block = decoder_layers(policy.trunk)[LAYER]
        for one in layer_input:
            handle = block.register_forward_hook(
                lambda _m, _i, out: (
                    (out[0] if isinstance(out, tuple) else out) + 2.0 * own.vectors[LAYER]
                )
            )
            hidden = policy.trunk(input_ids=torch.tensor([one.ids])).last_hidden_state[0]
            handle.remove()
            found.append(hidden[len(head) :])
        return found

    with torch.no_grad(), policy.steered(own):
        found = forward(policy, batch, read_prefix(policy, batch))
    for row, expected in enumerate(hand(streams)):
        assert torch.allclose(found[row, : len(expected)], expected, atol=1e-4)


@pytest.mark.parametrize("doses", [[3.0], [3.0, 3.0], [3.0, 1.0]])
def test_sampling_everywhere_reads_the_prompt_steered(
    make_policy: Callable[..., Policy], doses: list[float]
) -> None:
    """Prompts that begin alike, under one dose for all rows, or one for each."""
    policy = make_policy()
    prompts = [stream(20, 0).ids + stream(3, 0, start=s).ids for s in (40, 80)]
    with policy.steered(steering(policy, doses, everywhere=True)):
        sampler = Sampler(policy, 2)
        sampler.append(prompts)
        replies = sampler.sample(np.full((2, 5), 0.5), temperature=1e-3)
    for prompt, reply, dose in zip(prompts, replies, (doses * 2)[:2], strict=True):
        ids = [*prompt, *reply]
        whole = TokenStream(ids, [-1] * len(ids), [False] * len(ids))
        with torch.no_grad(), policy.steered(steering(policy, dose, everywhere=True)):
            hidden = forward(policy, pad([whole], policy.pad_id, policy.device))[0]
        chosen = policy.unembed(hidden).argmax(dim=-1)[len(prompt) - 1 : -1].tolist()
        assert reply == chosen


def test_rows_of_their_own_doses_are_read_everywhere(make_policy: Callable[..., Policy]) -> None:
    """Neither side of a shared beginning is read once for rows that it reads differently to."""
    policy = make_policy()
    head = stream(20, 0).ids
    streams = [
        TokenStream([*head, *r.ids], [-1] * 20 + r.turn, [False] * 20 + r.response)
        for r in (stream(4, 3, start=60), stream(4, 3, start=90))
    ]
    with torch.no_grad(), policy.steered(steering(policy, [2.0, -1.0], everywhere=True)):
        batch = make_batch(policy, streams)
        assert not batch.prefix
        together = forward(policy, batch, read_prefix(policy, batch))
    for row, dose in enumerate((2.0, -1.0)):
        with torch.no_grad(), policy.steered(steering(policy, dose, everywhere=True)):
            alone = forward(policy, pad([streams[row]], policy.pad_id, policy.device))[0]
        assert torch.allclose(together[row], alone, atol=1e-4)


def test_the_dose_halves_over_the_reply(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    own = steering(policy, 4.0, half_life=2.0)
    own.index_BT = torch.tensor([[-1, 0, 1, 2, 4]])
    shift = own.shift(torch.zeros(1, 5, policy.hidden_size), LAYER)
    factors = [0.0, 4.0, 4.0 * 2**-0.5, 2.0, 1.0]
    expected = torch.tensor(factors)[:, None] * own.vectors[LAYER]
    assert torch.allclose(shift[0], expected)


def test_a_position_that_points_that_way_already_is_left_alone(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    own = steering(policy, 1.0, gate=0.5)
    vector = own.vectors[LAYER]
    aside = torch.zeros_like(vector)
    aside[0], aside[1] = vector[1], -vector[0]
    own.index_BT = torch.tensor([[0, 1, 2]])
    hidden = torch.stack([3 * vector, aside, -vector])[None]
    shift = own.shift(hidden, LAYER)[0]
    assert shift[0].abs().max() == 0
    assert torch.allclose(shift[1:], torch.stack([vector, vector]))


def test_ablation_removes_the_component_along_the_vector(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    own = steering(policy, 1.0, ablate=True)
    own.index_BT = torch.tensor([[0, -1]])
    hidden = torch.randn(1, 2, policy.hidden_size, generator=torch.Generator().manual_seed(0))
    left = hidden + own.shift(hidden, LAYER)
    assert float(left[0, 0] @ own.vectors[LAYER]) == pytest.approx(0, abs=1e-4)
    assert torch.equal(left[0, 1], hidden[0, 1])


def test_sampling_with_a_cache_steers_as_one_pass_over_the_whole_reply_does(
    make_policy: Callable[..., Policy],
) -> None:
    """Greedy replies of two doses, next to each other, against a slow loop without a cache."""
    policy = make_policy()
    prompts = [stream(9, 0).ids, stream(4, 0, start=50).ids]
    doses = [3.0, 1.0]
    sampler = Sampler(policy, 2)
    with policy.steered(steering(policy, doses)):
        sampler.append(prompts)
        replies = sampler.sample(np.full((2, 6), 0.5), temperature=1e-3)
    for prompt, dose, reply in zip(prompts, doses, replies, strict=True):
        ids: list[int] = []
        for _ in reply:
            row = [*prompt, *ids, 0]
            whole = TokenStream(
                row, [0] * len(row), [False] * len(prompt) + [True] * (len(ids) + 1)
            )
            batch = pad([whole], policy.pad_id, policy.device)
            with torch.no_grad(), policy.steered(steering(policy, dose)):
                hidden = forward(policy, batch)
            ids.append(int(policy.unembed(hidden[0, -2]).argmax()))
        assert reply == ids


def test_steering_changes_replies_and_the_reference_knows_nothing_of_it(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    streams = [stream(4, 3), stream(2, 5)]
    plain = residual(policy, streams)
    with policy.steered(steering(policy, 5.0)):
        assert not torch.equal(residual(policy, streams), plain)
        with policy.reference():
            assert torch.equal(residual(policy, streams), plain)
        assert not torch.equal(residual(policy, streams), plain)
    assert torch.equal(residual(policy, streams), plain)
    assert not any(block._forward_hooks for block in decoder_layers(policy.trunk))


def test_hooks_are_gone_after_an_exception(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    with pytest.raises(ZeroDivisionError), policy.steered(steering(policy, 1.0)):
        raise ZeroDivisionError
    assert not policy.is_steered
    assert not any(block._forward_hooks for block in decoder_layers(policy.trunk))


def test_a_shared_prefix_is_not_steered(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    head = stream(20, 0).ids
    streams = [
        TokenStream([*head, *rest.ids], [-1] * 20 + rest.turn, [False] * 20 + rest.response)
        for rest in (stream(3, 4, start=60), stream(3, 2, start=90))
    ]

    def logprob(shared: bool) -> Tensor:
        batch = (
            make_batch(policy, streams) if shared else pad(streams, policy.pad_id, policy.device)
        )
        assert bool(batch.prefix) == shared
        with torch.no_grad():
            hidden = forward(policy, batch, read_prefix(policy, batch))
            mask = batch.response_mask
            own = predicting_hidden(hidden, mask)
            return token_statistics(own, batch.input_ids[mask], policy.unembed).logprob

    with policy.steered(steering(policy, 2.0)):
        assert torch.allclose(logprob(shared=True), logprob(shared=False), atol=1e-5)
