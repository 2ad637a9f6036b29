from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import lora_config, tiny_config

from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.signals.probing import states
from homeostat.signals.probing.corpus import Corpus, Utterance
from homeostat.signals.probing.states import utterance_states
from homeostat.signals.trace import trace
from homeostat.types import Conversation, Turn

LAYERS = (2, 0)
TEXTS = ("hello", "what is that?", "no", "I do not know, at all", "a bé c 🙂", "so", "it goes")


def made_corpus(digest: str = "one", texts: tuple[str, ...] = TEXTS) -> Corpus:
    """Seven utterances; every third one answers something."""
    before = (Turn("user", "why?"), Turn("assistant", "because"))
    talks = [
        Conversation((*(before if i % 3 == 2 else ()), Turn("user", text)))
        for i, text in enumerate(texts)
    ]
    return Corpus(tuple(Utterance(talk, "g", {}) for talk in talks), digest, "made up")


def tiny_policy(seed: int, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy whose base weights follow from the seed."""
    base = load_tiny(tiny_config(name="tiny", init_seed=seed), torch.device("cpu"), dtype)
    return Policy(base, lora_config(rank=4, alpha=8.0, layers=[0.0, 1.0]), 0)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many utterances each reading of the model took; shards hold three."""
    sizes: list[int] = []
    read = states.read_states

    def count(policy: Policy, utterances: Any, *args: Any) -> Any:
        sizes.append(len(utterances))
        return read(policy, utterances, *args)

    monkeypatch.setattr(states, "SHARD", 3)
    monkeypatch.setattr(states, "read_states", count)
    return sizes


def shards(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("states/*/*"))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.usefixtures("readings", "cache")
def test_states_are_pooled_as_in_the_trace_of_the_base(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None], cached: bool
) -> None:
    policy, reply = make_policy(), Turn("assistant", "ok", token_ids=(1, 2))
    stir(policy)
    found = utterance_states(policy, made_corpus(), LAYERS, cache=cached)
    assert found.shape == (7, 2, 2 * policy.hidden_size)
    assert found.dtype == np.float32
    talks = [Conversation((*u.conversation.turns, reply)) for u in made_corpus().utterances]
    for own, told in zip(found, trace(policy, talks, (), tuple(sorted(LAYERS))), strict=True):
        np.testing.assert_allclose(own[::-1], told.hidden_ref[-1], rtol=1e-4, atol=1e-4)
        assert np.abs(own[::-1] - told.hidden_policy[-1]).max() > 0.01
    assert policy.adapter_on


def test_second_call_reads_nothing_whatever_the_adapter_has_learnt(
    make_policy: Callable[..., Policy],
    stir: Callable[[Policy], None],
    readings: list[int],
    cache: Path,
) -> None:
    policy = make_policy()
    first = utterance_states(policy, made_corpus(), LAYERS)
    assert readings == [3, 3, 1]
    assert shards(cache) == ["000000.safetensors", "000003.safetensors", "000006.safetensors"]
    stir(policy)
    np.testing.assert_array_equal(utterance_states(policy, made_corpus(), LAYERS), first)
    np.testing.assert_array_equal(utterance_states(make_policy(5), made_corpus(), LAYERS), first)
    assert readings == [3, 3, 1]


def test_reading_that_was_broken_off_goes_on_at_the_next_shard(
    make_policy: Callable[..., Policy],
    readings: list[int],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, corpus = make_policy(), made_corpus()
    whole = utterance_states(policy, corpus, LAYERS, cache=False)
    read = states.read_states

    def break_off(policy: Policy, utterances: Any, *args: Any) -> Any:
        if utterances[0] == corpus.utterances[3]:
            raise KeyboardInterrupt
        return read(policy, utterances, *args)

    with monkeypatch.context() as patch:
        patch.setattr(states, "read_states", break_off)
        with pytest.raises(KeyboardInterrupt):
            utterance_states(policy, corpus, LAYERS)
    assert shards(cache) == ["000000.safetensors"]
    readings.clear()
    np.testing.assert_array_equal(utterance_states(policy, corpus, LAYERS), whole)
    assert readings == [3, 1]


def test_other_corpus_layers_model_or_precision_has_a_folder_of_its_own(
    readings: list[int], cache: Path
) -> None:
    policy, half = tiny_policy(0), tiny_policy(0, torch.bfloat16)
    cases = [
        (policy, made_corpus(), LAYERS),
        (policy, made_corpus("two", TEXTS[::-1]), LAYERS),
        (policy, made_corpus(), LAYERS[::-1]),
        (tiny_policy(1), made_corpus(), LAYERS),
        (half, made_corpus(), LAYERS),
    ]
    found = [utterance_states(*case) for case in cases]
    assert len(list(cache.glob("states/*"))) == len(cases)
    assert readings == [3, 3, 1] * len(cases)
    for at, other in enumerate(found[1:], start=1):
        assert not np.array_equal(found[0], other), at
    again = [utterance_states(*case) for case in cases]
    assert readings == [3, 3, 1] * len(cases)
    np.testing.assert_array_equal(again, found)


def test_without_the_cache_nothing_is_kept_or_used(
    make_policy: Callable[..., Policy], readings: list[int], cache: Path
) -> None:
    utterance_states(make_policy(), made_corpus(), LAYERS, cache=False)
    assert not cache.exists()
    utterance_states(make_policy(), made_corpus(), LAYERS)
    utterance_states(make_policy(), made_corpus(), LAYERS, cache=False)
    assert readings == [3, 3, 1] * 3


@pytest.mark.usefixtures("readings", "cache")
def test_progress_counts_utterances_and_the_tokens_that_were_read(
    make_policy: Callable[..., Policy],
) -> None:
    policy, corpus = make_policy(), made_corpus()
    told: list[tuple[int, int, int]] = []

    def progress(done: int, total: int, tokens: int = 0) -> None:
        told.append((done, total, tokens))

    utterance_states(policy, corpus, LAYERS, progress=progress)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {total for _, total, _ in told} == {7}
    assert told[-1][0] == 7
    lengths = [
        len(policy.encode(Conversation((Turn("user", u.text),))).ids) for u in corpus.utterances
    ]
    assert sum(tokens for _, _, tokens in told) == sum(lengths)
    told.clear()
    utterance_states(policy, corpus, LAYERS, progress=progress)
    assert told == [(3, 7, 0), (6, 7, 0), (7, 7, 0)]


def test_damaged_shard_is_read_again_and_the_others_are_not(
    make_policy: Callable[..., Policy], readings: list[int], cache: Path
) -> None:
    whole = utterance_states(make_policy(), made_corpus(), LAYERS)
    path = sorted(cache.glob("states/*/*"))[1]
    path.write_bytes(path.read_bytes()[:100])
    readings.clear()
    again = utterance_states(make_policy(), made_corpus(), LAYERS)
    assert np.array_equal(again, whole)
    assert readings == [3]


def test_states_of_another_template_are_read_anew(
    make_policy: Callable[..., Policy], readings: list[int], cache: Path
) -> None:
    utterance_states(make_policy(), made_corpus(), LAYERS)
    other = make_policy()
    other.tokenizer.chat_template = "Be terse. " + other.tokenizer.chat_template
    found = utterance_states(other, made_corpus(), LAYERS)
    assert readings == 2 * [3, 3, 1]
    assert np.array_equal(found, utterance_states(other, made_corpus(), LAYERS, cache=False))
    assert len(list(cache.glob("states/*"))) == 2


def test_without_the_cache_nothing_is_written(
    make_policy: Callable[..., Policy], readings: list[int], cache: Path
) -> None:
    utterance_states(make_policy(), made_corpus(), LAYERS, cache=False)
    assert readings == [3, 3, 1]
    assert not cache.exists()
