from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from configs import lora_config, tiny_config
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from homeostat.config.model import ModelConfig
from homeostat.models.adapters import Policy
from homeostat.models.chat import until_last_response
from homeostat.models.forward import batches_by_length, shared_prefix
from homeostat.models.load import finish
from homeostat.models.tiny import byte_tokenizer, load_tiny
from homeostat.signals.trace import trace, word_states
from homeostat.types import Conversation, Trace, Turn

NORM_LAYERS, PROBE_LAYERS = (0, 2), (1, 2)
CLOSE = {"abs": 1e-4, "rel": 1e-4}


@pytest.fixture(params=["", "Be brief and be kind."], ids=["no prefix", "shared prefix"])
def conversations(
    request: pytest.FixtureRequest, talk: Callable[..., Conversation]
) -> list[Conversation]:
    """Three conversations of different lengths; one has a reply that nobody sampled."""
    cut = talk("a bé c", "long reply 🙂 text", "ok?", "er", ended=False)
    said = talk("so", "first", "and then", "second", "bye").turns
    mixed = (said[0], Turn("assistant", "prefilled"), *said[2:])
    plain = (talk("hello", "hi there", "what?", "no", "bye"), cut, Conversation(mixed))
    prompt = (Turn("system", request.param),) if request.param else ()
    return [Conversation((*prompt, *one.turns)) for one in plain]


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
                "certainty_R": -sum(p) / len(p) - math.log(len(p)),
                "value_R": sum(final) + final[0],
            }
            for at, layer in enumerate(NORM_LAYERS):
                row[f"norm {at}"] = math.sqrt(sum(x * x for x in states[layer + 1][t]))
            rows.append(row)
    return rows


def slow_pooled(model: torch.nn.Module, policy: Policy, talk: Conversation) -> np.ndarray:
    """Mean over the tokens of every user turn alone, then its last token, at every probe layer."""
    rows = []
    for turn in talk.user_turns:
        stream = policy.encode(Conversation((Turn("user", talk.turns[turn].text),)))
        _, states = full_pass(model, stream.ids)
        at = [t for t, own in enumerate(stream.turn) if own == 0]
        for layer in PROBE_LAYERS:
            told = [states[layer + 1][t].tolist() for t in at]
            mean = [sum(column) / len(at) for column in zip(*told, strict=True)]
            rows.append(mean + told[-1])
    return np.array(rows).reshape(len(talk.user_turns), len(PROBE_LAYERS), -1)


def assert_equal_traces(found: Sequence[Trace], expected: Sequence[Trace]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.user_turns == other.user_turns
        for name, value in vars(one).items():
            if name != "user_turns" and value is not None:
                np.testing.assert_allclose(value, getattr(other, name), rtol=1e-4, atol=1e-4)


def base_model() -> torch.nn.Module:
    """The base without any adapter, independent of the policy's own."""
    config = tiny_config()
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
            for name, value in row.items():
                if not name.startswith("norm"):
                    assert getattr(own, name)[r] == pytest.approx(value, **CLOSE), name


def test_pooled_hidden_states_are_mean_and_last_of_the_users_tokens(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    base = base_model()
    for talk, own in zip(
        conversations, trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS), strict=True
    ):
        assert own.user_turns == tuple(i for i, t in enumerate(talk.turns) if t.role == "user")
        ref, policy = (slow_pooled(model, stirred, talk) for model in (base, stirred.model))
        assert np.abs(ref - policy).max() > 0.01
        assert ref.shape == (len(own.user_turns), 2, 2 * stirred.hidden_size)
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


@pytest.mark.parametrize("max_tokens", [4096, 300])
def test_trace_does_not_depend_on_the_side_of_the_padding(
    stirred: Policy, conversations: list[Conversation], max_tokens: int
) -> None:
    arguments = (stirred, conversations, NORM_LAYERS, PROBE_LAYERS, critic, max_tokens)
    assert_equal_traces(trace(*arguments, padding="left"), trace(*arguments, padding="right"))


def policy_of(kind: str, **options: Any) -> Policy:
    """A policy on four random blocks of another architecture than the tiny model's."""
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **options,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    own = ModelConfig(_target_="", name=kind)
    base = finish(model, tokenizer, own, torch.device("cpu"))
    return Policy(base, lora_config(rank=4, alpha=8.0, layers=[0.0, 1.0]), 0)


SLIDING = {"kind": "mistral", "sliding_window": 16}
HYBRID = {"kind": "lfm2", "layer_types": ["conv", "full_attention"] * 2}


@pytest.mark.parametrize("conversations", ["Be brief and be kind."], indirect=True)
@pytest.mark.parametrize(
    ("options", "padding"),
    [
        pytest.param(SLIDING, "right", id="sliding window, right"),
        pytest.param(SLIDING, "left", id="sliding window, left"),
        pytest.param(HYBRID, "right", id="convolutions, right"),
        pytest.param(HYBRID, "left", id="convolutions, left"),
    ],
)
def test_other_architectures_share_a_prefix_only_where_that_changes_nothing(
    options: dict[str, Any],
    padding: str,
    conversations: list[Conversation],
    stir: Callable[[Policy], None],
) -> None:
    policy = policy_of(**options)
    stir(policy)
    arguments = (policy, conversations, NORM_LAYERS, PROBE_LAYERS)
    alone = trace(*arguments, max_tokens=1)
    assert_equal_traces(trace(*arguments, padding=padding), alone)


def passes(policy: Policy, *arguments: Any, **options: Any) -> list[dict[str, Tensor]]:
    """What the model is given in each forward pass that a trace needs."""
    given: list[dict[str, Tensor]] = []

    def note(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Tensor]) -> None:
        given.append(kwargs)

    hook = policy.trunk.register_forward_pre_hook(note, with_kwargs=True)
    trace(policy, *arguments, **options)
    hook.remove()
    return given


@pytest.mark.parametrize(("padding", "first", "last"), [("left", 0, 1), ("right", 1, 0)])
def test_padding_lies_on_the_side_that_is_named(
    stirred: Policy, conversations: list[Conversation], padding: str, first: int, last: int
) -> None:
    read = passes(stirred, conversations, padding=padding)[-1]
    tokens = read["attention_mask"][:, -read["input_ids"].shape[1] :]
    assert tokens[-1].tolist()[:: tokens.shape[1] - 1] == [first, last]


def test_the_conversations_are_read_once_per_model_and_so_is_their_prefix(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    streams = [until_last_response(stirred.encode(talk)) for talk in conversations]
    shared = shared_prefix(streams)
    whole = (3, max(len(s.ids) for s in streams) - shared)
    once = [(1, shared), whole] if shared else [whole]
    arguments = (stirred, conversations, NORM_LAYERS, (), critic)
    assert [read["input_ids"].shape for read in passes(*arguments)] == once * 2
    with stirred.reference():
        assert [read["input_ids"].shape for read in passes(*arguments)] == once


def test_within_reference_the_policy_is_its_own_reference(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    outside = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS)
    with stirred.reference():
        within = trace(stirred, conversations, NORM_LAYERS, PROBE_LAYERS)
    base = base_model()
    for talk, own, other in zip(conversations, within, outside, strict=True):
        np.testing.assert_allclose(own.hidden_policy, slow_pooled(base, stirred, talk), atol=1e-4)
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
    # Without probe layers nothing after the last response is read, so nothing after it counts.
    rows = [policy.encode(talk).response for talk in conversations]
    lengths = sorted((max(i for i, own in enumerate(r) if own) + 1 for r in rows), reverse=True)
    assert told == [(n + 1, 3, length) for n, length in enumerate(lengths)]


def test_words_are_read_by_the_policy_as_it_is(
    stirred: Policy, conversations: list[Conversation]
) -> None:
    found = trace(stirred, conversations, (), PROBE_LAYERS)
    texts = [talk.turns[talk.user_turns[0]].text for talk in conversations]
    policy = word_states(stirred, texts, PROBE_LAYERS)
    with stirred.reference():
        ref = word_states(stirred, texts, PROBE_LAYERS)
    for row, own in enumerate(found):
        np.testing.assert_allclose(policy[row], own.hidden_policy[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ref[row], own.hidden_ref[0], rtol=1e-4, atol=1e-4)
        assert np.abs(policy[row] - ref[row]).max() > 0.01


def test_states_of_words_come_in_the_order_of_the_layers(stirred: Policy) -> None:
    rising = word_states(stirred, ["how so?"], (1, 2))
    falling = word_states(stirred, ["how so?"], (2, 1))
    np.testing.assert_array_equal(rising[:, ::-1], falling)


def test_the_same_words_are_read_alike_whatever_was_said_before(
    stirred: Policy, talk: Callable[..., Conversation]
) -> None:
    """A reply cannot enter the reading of what the user answers."""
    replies = ("no", "yes, and I am so glad that you are happy", "zx zx zx")
    talks = [talk("hello", reply, "I see", "ok", "bye") for reply in replies]
    first, *others = trace(stirred, talks, (), PROBE_LAYERS)
    (alone,) = trace(stirred, [talk("what?", "oh", "I see")], (), PROBE_LAYERS)
    for own in others:
        assert np.array_equal(own.hidden_ref, first.hidden_ref)
        assert np.array_equal(own.hidden_policy, first.hidden_policy)
    np.testing.assert_allclose(alone.hidden_ref[1], first.hidden_ref[1], atol=1e-5)
    assert np.abs(first.hidden_ref[1] - first.hidden_ref[2]).max() > 0.01


def test_user_turn_without_tokens_is_missing_not_zero(
    stirred: Policy, talk: Callable[..., Conversation]
) -> None:
    (own,) = trace(stirred, [talk("hello", "hi", "", "no")], (), PROBE_LAYERS)
    assert np.isfinite(own.hidden_policy[0]).all()
    assert np.isnan(own.hidden_policy[1]).all()


def test_silent_users_under_one_system_prompt_can_be_traced(
    stirred: Policy, talk: Callable[..., Conversation]
) -> None:
    """The token before the first reply must not go into the shared prefix: it predicts it."""
    prompt = Turn("system", "Be brief and be kind.")
    silent = [Conversation((prompt, *talk("", reply).turns)) for reply in ("hi", "no")]
    found = trace(stirred, silent)
    assert_equal_traces(found, trace(stirred, silent, max_tokens=1))


def test_a_reference_that_is_told_nothing_reads_the_replies_alone(
    stirred: Policy, talk: Callable[..., Conversation]
) -> None:
    """Its figures are those of plain conversations, all others those of the prompted ones."""
    plain = [talk("hello", "hi there", "what?", "no"), talk("so", "a longer one, at last")]
    told = [Conversation((Turn("system", "Be calm."), *one.turns)) for one in plain]
    base = base_model()
    found = trace(stirred, told, NORM_LAYERS, ref_talks=plain)
    for own, prompted, alone in zip(found, told, plain, strict=True):
        rows = slow_rows(stirred, base, prompted)
        streams = stirred.encode(prompted), stirred.encode(alone)
        log_p, log_q = (
            [log[t - 1] for t, sampled in enumerate(stream.response) if sampled]
            for stream, (log, _) in (
                (streams[0], full_pass(stirred.model, streams[0].ids)),
                (streams[1], full_pass(base, streams[1].ids)),
            )
        )
        ids = [i for i, sampled in zip(streams[0].ids, streams[0].response, strict=True) if sampled]
        assert own.turn_R.tolist() == [row["turn_R"] for row in rows]
        for r, (p, q, token) in enumerate(zip(log_p, log_q, ids, strict=True)):
            assert own.logprob_R[r] == pytest.approx(p[token], **CLOSE)
            assert own.ref_logprob_R[r] == pytest.approx(q[token], **CLOSE)
            kl = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            assert own.kl_R[r] == pytest.approx(kl, **CLOSE)
            assert own.entropy_R[r] == pytest.approx(rows[r]["entropy_R"], **CLOSE)
        assert (
            max(abs(row["ref_logprob_R"] - own.ref_logprob_R[r]) for r, row in enumerate(rows))
            > 0.01
        )


def test_within_reference_the_prompted_base_has_a_distance_from_the_plain_one(
    stirred: Policy, talk: Callable[..., Conversation]
) -> None:
    plain = [talk("hello", "hi there")]
    told = [Conversation((Turn("system", "Be calm."), *plain[0].turns))]
    with stirred.reference():
        (alike,), (apart,) = trace(stirred, told), trace(stirred, told, ref_talks=plain)
    assert np.abs(alike.kl_R).max() < 1e-6
    assert apart.kl_R.max() > 1e-4
    np.testing.assert_array_equal(apart.logprob_R, alike.logprob_R)


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
