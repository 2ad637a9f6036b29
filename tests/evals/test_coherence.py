"""Coherence of replies and plain text, with scripted subjects and against a slow loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scripted import PLAIN, Scripted, rows_of, uniform

from homeostat.errors import HomeostatError
from homeostat.evals.subject import PolicySubject
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import Sampling
from homeostat.steering.vectors import as_message

ITEMS = [{"id": str(n), "text": f"Question {n}?"} for n in range(4)]
LOOP = "the same words again " * 6


def passes(says: str) -> list[float]:
    return [
        row["passes"]
        for row in rows_of("coherence", Scripted(uniform, says=lambda _: says), ITEMS, tokens=24)
    ]


def test_plain_replies_pass_and_loops_and_silence_do_not() -> None:
    assert passes(PLAIN) == [1.0] * 4
    assert passes(LOOP) == [0.0] * 4
    assert passes("") == [0.0] * 4


def test_an_empty_reply_has_no_perplexity() -> None:
    (row, *_) = rows_of("coherence", Scripted(uniform, says=lambda _: ""), ITEMS, tokens=24)
    assert row["log_perplexity"] is None
    assert row["tokens"] == 0


def test_perplexity_counts_against_the_base_s_own_replies() -> None:
    class Rambling(Scripted):
        """Says what its base finds three nats a token likelier to be wrong."""

        def sample(self, talks, sampling):  # type: ignore[no-untyped-def]
            found = super().sample(talks, sampling)
            if self.is_itself:
                for reply in found:
                    reply.base_nll_R[:] = 4.0
            return found

    (row, *_) = rows_of("coherence", Rambling(uniform, says=lambda _: PLAIN), ITEMS, tokens=24)
    assert row["passes"] == 0
    assert set(row["failed"]) == {"perplexity", "tail"}  # e^3 is above 3 and above 6
    assert row["log_perplexity"] == 4.0


def test_sampled_replies_are_read_by_the_base_and_do_not_depend_on_the_batch(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    subject, sampling = PolicySubject(policy), Sampling(6, 0.7, (1,))
    talks = [as_message("Hello?"), as_message("What is the weather like there today?")]
    together = subject.sample(talks, sampling)
    alone = subject.sample(talks[:1], sampling)[0]
    assert alone.ids == together[0].ids
    np.testing.assert_allclose(alone.base_nll_R, together[0].base_nll_R, atol=1e-4)
    prompt = policy.encode(talks[0]).ids
    with torch.no_grad(), policy.reference():
        logits = policy.model(torch.tensor([[*prompt, *alone.ids]])).logits[0].log_softmax(-1)
    slow = [-float(logits[len(prompt) - 1 + k, i]) for k, i in enumerate(alone.ids)]
    np.testing.assert_allclose(alone.base_nll_R, slow, atol=1e-3)
    assert subject.tokens > 0


def test_plain_text_equals_a_slow_loop(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    items = [{"id": "a", "text": "A short text."}, {"id": "b", "text": "It rained on the pier."}]
    for item, row in zip(items, rows_of("plain_text", PolicySubject(policy), items), strict=True):
        ids = policy.tokenizer(item["text"])["input_ids"]
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        slow = [-float(logits[k - 1, ids[k]]) for k in range(1, len(ids))]
        assert row["nll"] == pytest.approx(np.mean(slow), abs=1e-4)
        assert row["tokens"] == len(slow)


def test_a_text_without_anything_to_predict_is_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(HomeostatError, match="nothing to predict"):
        PolicySubject(make_policy()).read(["x"])
