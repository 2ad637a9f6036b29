"""Sampled replies against a slow loop without a cache, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.rollout import generate
from homeostat.rollout.generate import ALL, Nucleus, Sampler, _inverse_cdf

LIMIT = 6


@pytest.fixture(scope="module")
def made() -> dict[str, Policy]:
    """What is made once for all tests of this file; none of them changes it."""
    return {}


@pytest.fixture
def policy(
    made: dict[str, Policy], make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> Policy:
    """A policy whose adapter matters."""
    if "policy" not in made:
        made["policy"] = make_policy()
        stir(made["policy"])
    return made["policy"]


def next_distribution(policy: Policy, ids: Sequence[int], temperature: float = 1.0) -> list[float]:
    """Next-token probabilities from one full pass over all tokens of one row."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).tolist()


def token_at(probabilities: Sequence[float], uniform: float) -> int:
    """The first token at which the running sum passes the uniform number."""
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if total > uniform:
            return token
    raise AssertionError("the uniform number is above the total probability")


def slow_reply(
    policy: Policy, ids: Sequence[int], numbers: Sequence[float], temperature: float = 1.0
) -> list[int]:
    reply: list[int] = []
    for number in numbers:
        probabilities = next_distribution(policy, [*ids, *reply], temperature)
        reply.append(token_at(probabilities, number))
        if reply[-1] in policy.eos_ids:
            break
    return reply


def number_for(probabilities: Sequence[float], token: int) -> float:
    """A uniform number that picks this token."""
    return sum(probabilities[:token]) + probabilities[token] / 2


def numbers_that_end(
    policy: Policy, ids: Sequence[int], numbers: Sequence[float], after: int
) -> list[float]:
    """The same numbers, except that the reply ends itself after so many tokens."""
    changed = list(numbers)
    said = slow_reply(policy, ids, numbers[: after - 1])
    assert len(said) == after - 1
    changed[after - 1] = number_for(next_distribution(policy, [*ids, *said]), policy.eos_ids[0])
    return changed


def some_ids(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 200, count).tolist()


# --- sampling -----------------------------------------------------------------------------------


def test_replies_equal_a_slow_loop_over_two_turns(policy: Policy) -> None:
    """Rows of different lengths; the first and the third end their first reply themselves."""
    rng = np.random.default_rng(0)
    seen = [some_ids(1, 5), some_ids(2, 17), some_ids(3, 11)]
    ends = [[2, None, 4], [None, 1, LIMIT]]
    sampler = Sampler(policy, 3)
    blocks = seen
    for turn in range(2):
        sampler.append(blocks)
        numbers = [rng.random(LIMIT).tolist() for _ in range(3)]
        for row, after in enumerate(ends[turn]):
            if after is not None:
                numbers[row] = numbers_that_end(policy, seen[row], numbers[row], after)
        replies = sampler.sample(np.array(numbers))
        expected = [slow_reply(policy, seen[row], numbers[row]) for row in range(3)]
        assert replies == expected
        for reply, after in zip(replies, ends[turn], strict=True):
            assert len(reply) == (after or LIMIT)
            assert (reply[-1] in policy.eos_ids) == (after is not None)
        blocks = [some_ids(10 + row, count) for row, count in enumerate((9, 2, 4))]
        seen = [ids + reply + new for ids, reply, new in zip(seen, replies, blocks, strict=True)]


def test_a_row_does_not_depend_on_its_neighbours(policy: Policy) -> None:
    rng = np.random.default_rng(4)
    prompts, later = [some_ids(s, 4 + 5 * s) for s in range(4)], some_ids(9, 3)
    first, second = rng.random((2, 4, LIMIT))
    together = Sampler(policy, 4)
    together.append(prompts)
    replies = [together.sample(first)]
    together.append([later] * 4)
    replies.append(together.sample(second))
    for row in range(4):
        alone = Sampler(policy, 1)
        alone.append([prompts[row]])
        assert alone.sample(first[[row]]) == [replies[0][row]]
        alone.append([later])
        assert alone.sample(second[[row]]) == [replies[1][row]]


def test_a_reply_stops_at_the_end_of_its_turn(policy: Policy) -> None:
    ids = some_ids(1, 5)
    numbers = numbers_that_end(policy, ids, [0.3] * 4, after=2)
    sampler = Sampler(policy, 2)
    sampler.append([ids, some_ids(2, 3)])
    ended, other = sampler.sample(np.array([numbers, [0.3] * 4]))
    assert len(ended) == 2
    assert ended[-1] in policy.eos_ids
    assert len(other) == 4
    assert not set(other) & set(policy.eos_ids)


def test_sampling_stops_when_every_row_has_ended(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = some_ids(1, 5)
    numbers = numbers_that_end(policy, ids, [0.3] * 50, after=2)
    sampler = Sampler(policy, 1)
    sampler.append([ids])
    passes = []
    forward = sampler._forward
    monkeypatch.setattr(sampler, "_forward", lambda *args: (passes.append(1), forward(*args)))
    assert len(sampler.sample(np.array([numbers]))[0]) == 2
    assert len(passes) == 1  # the second token is read with the next block


def test_rows_that_have_ended_leave_the_batch(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [some_ids(seed, 5) for seed in range(4)]
    ends = [1, 1, 3, None]
    numbers = [[0.3] * LIMIT for _ in range(4)]
    for row, after in enumerate(ends):
        if after is not None:
            numbers[row] = numbers_that_end(policy, prompts[row], numbers[row], after)
    read: list[int] = []
    plain = Policy.hidden

    def hidden(self: Policy, block: Any, *args: Any) -> Any:
        read.append(len(block.ids))
        return plain(self, block, *args)

    monkeypatch.setattr(Policy, "hidden", hidden)
    sampler = Sampler(policy, 4)
    sampler.append(prompts)
    replies = sampler.sample(np.array(numbers))
    assert [len(reply) for reply in replies] == [1, 1, 3, LIMIT]
    assert read == [4, 2, 2, 1, 1, 1]  # the prompts, then token by token
    # The next block is read by all again, each after what it has said itself.
    sampler.append([[7]] * 4)
    assert sampler._hidden is not None
    monkeypatch.undo()
    for row, reply in enumerate(replies):
        ids = torch.tensor([[*prompts[row], *reply, 7]])
        with torch.no_grad():
            alone = policy.trunk(input_ids=ids).last_hidden_state[0, -1]
        torch.testing.assert_close(sampler._hidden[row], alone, rtol=1e-4, atol=1e-4)


def test_a_single_token(policy: Policy) -> None:
    ids, number = some_ids(1, 5), 0.77
    sampler = Sampler(policy, 1)
    sampler.append([ids])
    assert sampler.sample(np.array([[number]])) == [slow_reply(policy, ids, [number])]


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0])
def test_temperature_equals_the_slow_loop(policy: Policy, temperature: float) -> None:
    prompts = [some_ids(1, 5), some_ids(2, 9)]
    numbers = np.random.default_rng(1).random((2, LIMIT))
    sampler = Sampler(policy, 2)
    sampler.append(prompts)
    expected = [
        slow_reply(policy, ids, row.tolist(), temperature)
        for ids, row in zip(prompts, numbers, strict=True)
    ]
    assert sampler.sample(numbers, temperature) == expected


def slow_keep(probabilities: list[float], top_p: float, top_k: int | None) -> list[float]:
    """The probabilities of the tokens that may be drawn, one by one from the likeliest."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:top_k]
    kept, share = [0.0] * len(probabilities), 0.0
    whole = sum(probabilities[token] for token in order)
    for token in order:
        if share >= top_p * whole:
            break
        kept[token] = probabilities[token]
        share += probabilities[token]
    return kept


@pytest.mark.parametrize(
    ("top_p", "top_k"), [(1.0, None), (0.95, None), (0.3, None), (1.0, 3), (0.7, 10), (0.0, None)]
)
def test_only_the_likeliest_are_kept(top_p: float, top_k: int | None) -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(40, 0.3), size=6).astype(np.float32)
    kept = Nucleus(top_p, top_k).keep(torch.from_numpy(rows))
    for found, row in zip(kept.tolist(), rows.tolist(), strict=True):
        expected = slow_keep(row, top_p, top_k) if top_p else slow_keep(row, 1.0, 1)
        assert found == pytest.approx(expected)


def test_tokens_by_hand_and_equals_stay_together() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    assert Nucleus(0.69).keep(probs).tolist()[0] == pytest.approx([0, 0.4, 0.3, 0])
    assert Nucleus(0.71).keep(probs).tolist()[0] == pytest.approx([0, 0.4, 0.3, 0.2])
    # The best two are 0.78 of the best three, and without top_k 0.7 of all.
    assert Nucleus(0.75, 3).keep(probs).tolist()[0] == pytest.approx([0, 0.4, 0.3, 0])
    assert Nucleus(top_k=1).keep(torch.tensor([[0.4, 0.4, 0.2]])).tolist()[0] == pytest.approx(
        [0.4, 0.4, 0]
    )


def test_a_number_next_to_one_draws_no_forbidden_token() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0, 0.5]] * 2)
    numbers = torch.tensor([1 - 2**-24, 0.0])
    assert _inverse_cdf(logits, numbers, nucleus=Nucleus(top_k=2)).tolist() == [2, 1]


def test_replies_come_from_the_nucleus(policy: Policy) -> None:
    """A nucleus of one token is greedy; the whole one is what it was without."""
    prompts, numbers = [some_ids(1, 5)], np.random.default_rng(1).random((1, LIMIT))
    found = []
    for nucleus, temperature in ((Nucleus(top_k=1), 1.0), (ALL, 1e-5), (Nucleus(1.0), 1.0)):
        sampler = Sampler(policy, 1)
        sampler.append(prompts)
        found.append(sampler.sample(numbers, temperature, nucleus))
    assert found[0] == found[1]
    assert found[2] == [slow_reply(policy, prompts[0], numbers[0].tolist())]


def test_a_very_low_temperature_takes_the_most_likely_token(policy: Policy) -> None:
    ids = some_ids(1, 5)
    greedy: list[int] = []
    for _ in range(LIMIT):
        probabilities = next_distribution(policy, ids + greedy)
        greedy.append(probabilities.index(max(probabilities)))
    for number in (0.05, 0.5, 0.95):
        sampler = Sampler(policy, 1)
        sampler.append([ids])
        assert sampler.sample(np.full((1, LIMIT), number), temperature=1e-5) == [greedy]


def test_the_reference_is_sampled_within_its_context(
    make_policy: Callable[..., Policy], policy: Policy
) -> None:
    """The same numbers say something else once the adapter is off."""
    ids, numbers = some_ids(1, 5), np.random.default_rng(1).random((1, LIMIT))
    with policy.reference():
        sampler = Sampler(policy, 1)
        sampler.append([ids])
        replies = sampler.sample(numbers)
    assert replies == [slow_reply(make_policy(), ids, numbers[0].tolist())]
    assert replies != [slow_reply(policy, ids, numbers[0].tolist())]


def test_sampling_without_a_prompt_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="append"):
        Sampler(policy, 1).sample(np.array([[0.5]]))


# --- the context --------------------------------------------------------------------------------


@pytest.fixture
def short_policy(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """A policy with a context of twelve tokens."""
    monkeypatch.setattr(policy.base.model.config, "max_position_embeddings", 12)
    assert policy.max_context == 12
    return policy


def test_a_prompt_that_outgrows_the_context_is_refused(short_policy: Policy) -> None:
    with pytest.raises(HomeostatError) as caught:
        Sampler(short_policy, 2).append([some_ids(1, 3), some_ids(2, 13)])
    message = str(caught.value)
    assert all(part in message for part in ("13 tokens", "12", "rollout.turns", "max_new_tokens"))


def test_a_reply_that_outgrows_the_context_is_refused(short_policy: Policy) -> None:
    sampler = Sampler(short_policy, 1)
    sampler.append([some_ids(1, 10)])
    with pytest.raises(HomeostatError, match=r"13 tokens.*12"):
        sampler.sample(np.full((1, 5), 0.3))


def test_a_conversation_that_just_fits_is_no_error(short_policy: Policy) -> None:
    sampler = Sampler(short_policy, 1)
    sampler.append([some_ids(1, 10)])
    assert len(sampler.sample(np.full((1, 3), 0.3))[0]) == 3  # the last token is not read


def test_only_the_tokens_of_a_row_count_not_the_padding(short_policy: Policy) -> None:
    sampler = Sampler(short_policy, 2)
    sampler.append([some_ids(1, 10), some_ids(2, 1)])
    sampler.append([some_ids(3, 1), some_ids(4, 10)])  # 20 columns, 11 tokens in either row
    with pytest.raises(HomeostatError, match="13 tokens"):
        sampler.append([some_ids(5, 1), some_ids(6, 2)])


# --- what all rows begin with -------------------------------------------------------------------

COMMON = some_ids(20, 12)


def shapes_read(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Filled with the shape of every block of tokens that the model reads."""
    read: list[tuple[int, ...]] = []
    forward = sampler._forward

    def noted(tokens: torch.Tensor, *rest: Any) -> None:
        read.append(tuple(tokens.shape))
        forward(tokens, *rest)

    monkeypatch.setattr(sampler, "_forward", noted)
    return read


@pytest.mark.parametrize(
    ("own", "shared", "left"),
    [
        ([[1, 2, 3], [4], [5, 6, 7, 8, 9]], 12, 5),
        ([[1, 2], [1, 3], [1]], 12, 2),  # each row keeps a token of its own
        ([[], [1, 2, 3], [4]], 11, 4),  # one prompt begins the others
        ([[], [], []], 0, 12),  # all prompts are the same, and read as one
        ([[5], [7], [5]], 12, 1),  # two are
    ],
)
def test_a_shared_prefix_is_read_once_and_changes_no_reply(
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    own: list[list[int]],
    shared: int,
    left: int,
) -> None:
    prompts = [COMMON + ids for ids in own]
    later = [some_ids(30 + row, count) for row, count in enumerate((9, 2, 4))]
    first, second = np.random.default_rng(7).random((2, 3, LIMIT))
    found = []
    for share in (True, False):
        monkeypatch.setattr(generate, "can_share", lambda _policy, share=share: share)
        sampler = Sampler(policy, 3)
        read = shapes_read(sampler, monkeypatch)
        sampler.append(prompts)
        rows = len(set(map(tuple, own)))
        expected = [(3, len(COMMON) + max(map(len, own)))]
        if share:
            expected = [(1, shared), (rows, left)] if shared else [(rows, left)]
        assert read == expected
        replies = sampler.sample(first)
        sampler.append(later)
        found.append([replies, sampler.sample(second)])
    assert found[0] == found[1]
    seen = [*zip(prompts, found[0][0], later, strict=True)]
    assert found[0][0] == [
        slow_reply(policy, ids, n) for ids, n in zip(prompts, first, strict=True)
    ]
    assert found[0][1] == [
        slow_reply(policy, ids + reply + new, numbers)
        for (ids, reply, new), numbers in zip(seen, second, strict=True)
    ]


@pytest.mark.parametrize("prompts", [[[*COMMON[:7], 1], [*COMMON[:7], 2]], [COMMON], [[1], []]])
def test_a_short_prefix_and_a_single_row_are_read_as_they_are(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
) -> None:
    sampler = Sampler(policy, len(prompts))
    read = shapes_read(sampler, monkeypatch)
    sampler.append(prompts)
    assert read == [(len(prompts), len(prompts[0]))]


def test_only_the_first_block_is_shared(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later blocks follow different replies, even where they are the same tokens."""
    sampler = Sampler(policy, 2)
    sampler.append([some_ids(1, 3), some_ids(2, 5)])
    read = shapes_read(sampler, monkeypatch)
    sampler.append([COMMON, COMMON])
    assert read == [(2, len(COMMON))]


def test_the_reference_shares_its_own_prefix(
    make_policy: Callable[..., Policy], policy: Policy
) -> None:
    prompts, numbers = [[*COMMON, 1], [*COMMON, 2]], np.random.default_rng(1).random((2, LIMIT))
    with policy.reference():
        sampler = Sampler(policy, 2)
        sampler.append(prompts)
        replies = sampler.sample(numbers)
    base = make_policy()
    assert replies == [slow_reply(base, *row) for row in zip(prompts, numbers, strict=True)]


def test_a_shared_prefix_that_outgrows_the_context_is_refused(short_policy: Policy) -> None:
    with pytest.raises(HomeostatError, match=r"13 tokens.*12"):
        Sampler(short_policy, 2).append([[*COMMON, 1], [*COMMON, 2]])


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("replied", [False, True])
def test_a_fork_goes_on_alone_and_leaves_the_original_as_it_was(
    policy: Policy, replied: bool
) -> None:
    """With ``replied`` the newest tokens of both are not read yet when the copy is made."""
    rng = np.random.default_rng(8)
    prompts, before = [some_ids(1, 5), [*COMMON, 3]], rng.random((2, 3))
    own, others = ([some_ids(seed, 4), some_ids(seed + 1, 2)] for seed in (40, 50))
    first, second, third = rng.random((3, 2, LIMIT))

    def begun() -> Sampler:
        sampler = Sampler(policy, 2)
        sampler.append(prompts)
        if replied:
            sampler.sample(before)
        return sampler

    def goes_on(sampler: Sampler, blocks: list[list[int]]) -> list[list[list[int]]]:
        sampler.append(blocks)
        replies = [sampler.sample(first)]
        sampler.append(blocks)
        return [*replies, sampler.sample(second, temperature=0.5)]

    undisturbed, other = goes_on(begun(), own), goes_on(begun(), others)
    assert undisturbed != other
    sampler = begun()
    fork, late = sampler.fork(), sampler.fork()
    assert goes_on(fork, others) == other
    assert goes_on(sampler, own) == undisturbed
    assert goes_on(late, own) == undisturbed  # made before, used after
    fork.append(own)
    sampler.append(own)
    assert fork.sample(third) != sampler.sample(third)


def test_kept_rows_go_on_as_they_would_have(policy: Policy) -> None:
    """A row that is kept twice goes two ways; the sampler that it came from stays as it was."""
    rng = np.random.default_rng(9)
    before, after = rng.random((2, LIMIT)), rng.random((3, LIMIT))
    sampler = Sampler(policy, 2)
    sampler.append([some_ids(1, 5), some_ids(2, 9)])
    first = sampler.sample(before)
    kept = sampler.keep([1, 0, 1])
    blocks = [some_ids(60, 3), some_ids(61, 4), some_ids(62, 2)]
    kept.append(blocks)
    seen = [some_ids(2, 9) + first[1], some_ids(1, 5) + first[0], some_ids(2, 9) + first[1]]
    rows = zip(seen, blocks, after, strict=True)
    assert kept.sample(after) == [slow_reply(policy, ids + new, list(u)) for ids, new, u in rows]
    sampler.append(blocks[:2])
    undisturbed = [some_ids(1, 5) + first[0] + blocks[0], some_ids(2, 9) + first[1] + blocks[1]]
    expected = [
        slow_reply(policy, ids, list(u)) for ids, u in zip(undisturbed, after, strict=False)
    ]
    assert sampler.sample(after[:2]) == expected


def test_a_fork_may_be_sampled_at_once(policy: Policy) -> None:
    """As the failures do: one prompt, many replies."""
    prompts = [[*COMMON, 1], [*COMMON, 2, 3]]
    sampler = Sampler(policy, 2)
    sampler.append(prompts)
    for temperature in (1e-4, 0.7, 2.0):
        numbers = np.random.default_rng(3).random((2, LIMIT))
        assert sampler.fork().sample(numbers, temperature) == [
            slow_reply(policy, ids, row, temperature)
            for ids, row in zip(prompts, numbers, strict=True)
        ]


def test_a_fork_of_a_sampler_that_has_read_nothing(policy: Policy) -> None:
    sampler = Sampler(policy, 1)
    fork = sampler.fork()
    fork.append([some_ids(1, 5)])
    assert len(fork.sample(np.array([[0.3]]))[0]) == 1
    with pytest.raises(ValueError, match="append"):
        sampler.sample(np.array([[0.3]]))


# --- inverse of the cumulative distribution -----------------------------------------------------

MINUS = float("-inf")
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


def chosen(logits: Sequence[float], *numbers: float) -> list[int]:
    rows = torch.tensor([list(logits)] * len(numbers))
    return _inverse_cdf(rows, torch.tensor(numbers, dtype=torch.float32)).tolist()


def test_inverse_cdf_by_hand() -> None:
    """Four tokens of probability a quarter each; a token owns its lower edge."""
    numbers = (0.0, 0.2, 0.25, 0.49, 0.5, 0.74, 0.75, BELOW_ONE)
    assert chosen([0.0] * 4, *numbers) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_inverse_cdf_of_unequal_probabilities() -> None:
    logits = torch.tensor([0.5, 0.125, 0.375]).log().tolist()
    assert chosen(logits, 0.0, 0.49, 0.51, 0.62, 0.63, 0.99) == [0, 0, 1, 1, 2, 2]


def test_a_token_without_probability_is_never_chosen() -> None:
    logits = [MINUS, MINUS, 0.0, MINUS, 0.0, MINUS, MINUS]
    assert chosen(logits, 0.0, 1e-30, 0.49, 0.5, 0.51, BELOW_ONE) == [2, 2, 2, 4, 4, 4]


def test_a_certain_token_is_always_chosen() -> None:
    assert chosen([MINUS, 3.0, MINUS], 0.0, 0.5, BELOW_ONE) == [1, 1, 1]


def test_rows_have_their_own_numbers_and_logits() -> None:
    logits = torch.tensor([[0.0, MINUS, 0.0], [MINUS, 0.0, 0.0], [0.0, 0.0, MINUS]])
    assert _inverse_cdf(logits, torch.tensor([0.6, 0.4, 0.9])).tolist() == [2, 1, 1]


def test_inverse_cdf_equals_a_running_sum() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    probabilities = logits.double().softmax(-1).tolist()
    numbers = [(k + 0.37) / 400 for k in range(400)]
    expected = [token_at(probabilities, number) for number in numbers]
    assert chosen(logits.tolist(), *numbers) == expected


@pytest.mark.parametrize("number", [0.0, BELOW_ONE, 1 - 1e-9, 1 - 2**-53])
def test_the_edges_of_the_unit_interval_choose_no_impossible_token(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    """Uniform numbers come in float64; 1 - 2**-53 is the largest that numpy can draw."""
    logits = torch.full((1, 258), MINUS)
    logits[0, 7] = logits[0, 9] = 0.0
    monkeypatch.setattr(policy, "unembed", lambda _hidden: logits)
    sampler = Sampler(policy, 1)
    sampler.append([[1, 2, 3]])
    assert sampler.sample(np.array([[number]])) == [[7 if number < 0.5 else 9]]
