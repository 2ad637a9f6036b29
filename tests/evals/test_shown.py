"""The trait in replies: against a slow loop over tokens, and what may not enter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from homeostat.config.persona import PersonaConfig
from homeostat.config.register import config_part
from homeostat.evals import shown
from homeostat.evals.shown import compare_lines, first_person, validate_shown
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import Sampling, with_given_reply
from homeostat.steering.shown import shown_nats, shown_shift
from homeostat.steering.vectors import PersonaVector
from homeostat.types import Conversation, Turn

PERSONA: PersonaConfig = config_part("persona=calm")
REPLIES = ("slow and soft words", "quick", "loud words and so on and on")


def talks(policy: Policy) -> list[Conversation]:
    asked = [Conversation((Turn("user", "well? " * n),)) for n in (1, 4, 2)]
    return [with_given_reply(policy, a, text) for a, text in zip(asked, REPLIES, strict=True)]


def slow(policy: Policy, talk: Conversation) -> float:
    """One row, one side, one token at a time."""
    sides = []
    for side in (PERSONA.positive, PERSONA.negative):
        system = Turn("system", PERSONA.prompt.format(persona=side))
        prompt = policy.encode(Conversation((system, talk.turns[0]))).ids
        reply = list(talk.turns[-1].token_ids or ())
        total = 0.0
        for n, token in enumerate(reply):
            with torch.no_grad(), policy.model.disable_adapter():
                logits = policy.model(input_ids=torch.tensor([prompt + reply[:n]])).logits[0, -1]
            total += float(logits.log_softmax(-1)[token])
        sides.append(total / len(reply))
    return sides[0] - sides[1]


def test_log_odds_equal_the_slow_loop_and_know_nothing_of_the_adapter(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    given = talks(policy)
    expected = [slow(policy, talk) for talk in given]
    assert shown_nats(policy, PERSONA, given) == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 4) for value in expected}) == 3
    stir(policy)
    assert shown_nats(policy, PERSONA, given) == pytest.approx(expected, abs=1e-4)
    alone = [shown_nats(policy, PERSONA, [talk])[0] for talk in given]
    assert alone == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_the_shift_equals_the_slow_loop_and_knows_nothing_of_adapter_or_batch(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    generator = torch.Generator().manual_seed(0)
    # Not the last: transformers normalises what it puts out.
    blocks = range(policy.num_layers - 1)
    by_block = {n: torch.randn(policy.hidden_size, generator=generator) for n in blocks}
    vector = PersonaVector(by_block, {}, "mean_diff")
    given = talks(policy)

    def slow_shift(talk: Conversation) -> float:
        prompt = policy.encode(Conversation(talk.turns[:1])).ids
        reply = list(talk.turns[-1].token_ids or ())
        with policy.model.disable_adapter():
            ids = torch.tensor([prompt + reply])
            states = policy.model(input_ids=ids, output_hidden_states=True).hidden_states
        along, length = 0.0, 0.0
        for block, v in by_block.items():
            mean = sum(states[block + 1][0, len(prompt) + n] for n in range(len(reply)))
            along += float(mean @ v) / len(reply)
            length += float(v @ v)
        return along / length

    expected = [slow_shift(talk) for talk in given]
    assert len({round(value, 4) for value in expected}) == 3
    stir(policy)
    assert shown_shift(policy, vector, given) == pytest.approx(expected, abs=1e-5)
    assert shown_shift(policy, vector, given[1:2]) == pytest.approx(expected[1:2], abs=1e-5)
    silent = Conversation((Turn("user", "well?"), Turn("assistant", "", token_ids=())))
    assert shown_shift(policy, vector, [silent, given[0]]) == [
        None,
        pytest.approx(expected[0], abs=1e-5),
    ]
    told = [Conversation((Turn("system", "You are a pirate."), *talk.turns)) for talk in given]
    assert shown_shift(policy, vector, told) == pytest.approx(expected, abs=1e-5)


def test_of_a_talk_only_the_last_reply_is_read(make_policy: Callable[..., Policy]) -> None:
    """What was said before is context, whoever said it."""
    policy = make_policy()
    first, second = talks(policy)[:2]
    before = tuple(replace(turn, token_ids=None) for turn in first.turns)
    both = Conversation((*before, *second.turns))
    (found,) = shown_nats(policy, PERSONA, [both])
    sides = []
    for side in (PERSONA.positive, PERSONA.negative):
        system = Turn("system", PERSONA.prompt.format(persona=side))
        prompt = policy.encode(Conversation((system, *both.turns[:-1]))).ids
        reply = list(second.turns[-1].token_ids or ())
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + reply])).logits[0]
        chances = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        sides.append(float(chances[range(len(reply)), reply].mean()))
    assert found == pytest.approx(sides[0] - sides[1], abs=1e-5)
    assert found != pytest.approx(shown_nats(policy, PERSONA, [second])[0], abs=1e-4)


def test_a_system_turn_of_the_talk_is_left_away(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    plain = talks(policy)
    told = [Conversation((Turn("system", "You are a pirate."), *talk.turns)) for talk in plain]
    assert shown_nats(policy, PERSONA, told) == shown_nats(policy, PERSONA, plain)


def test_the_sides_turned_round_change_the_sign(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    turned = config_part("persona=calm", positive=PERSONA.negative, negative=PERSONA.positive)
    own, other = (shown_nats(policy, one, talks(policy)) for one in (PERSONA, turned))
    assert own == pytest.approx([-value for value in other if value is not None])


def test_an_empty_reply_shows_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    silent = Conversation((Turn("user", "well?"), Turn("assistant", "", token_ids=())))
    given = [talks(policy)[0], silent]
    found = shown_nats(policy, PERSONA, given)
    assert found[1] is None
    assert found[0] == pytest.approx(slow(policy, given[0]), abs=1e-4)
    assert shown_nats(policy, PERSONA, [silent]) == [None]


@pytest.mark.parametrize(
    ("text", "share"),
    [("I think I'm here", 0.5), ("My own is mine.", 0.5), ("It is in him", 0.0), ("...", None)],
)
def test_speaking_of_oneself_by_hand(text: str, share: float | None) -> None:
    assert first_person(text) == share


def test_lines_are_compared_on_the_persona_s_prompts(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each line asks, and the mean of what shows; replies that show nothing do not count."""
    policy, seen = make_policy(), []
    lines = ["You are {persona}.", "Be {persona}!"]

    def longer(_policy: Any, persona: Any, given: list[Conversation]) -> list[float | None]:
        assert persona == PERSONA, "read with the persona's own line"
        seen.append([talk.turns[:2] for talk in given])
        return [None, *(float(len(talk.turns[0].text)) for talk in given[1:])]

    monkeypatch.setattr(shown, "shown_nats", longer)
    found = compare_lines(policy, PERSONA, lines, Sampling(3, 1.0, (1,)))
    assert [row["line"] for row in found] == lines
    assert [row["n"] for row in found] == [15, 15]
    for row, talks_, line in zip(found, seen, lines, strict=True):
        told = line.format(persona=PERSONA.positive)
        assert row["shown_nats"] == len(told)
        assert [turns[0].text for turns in talks_] == [told] * 16
        assert [turns[1].text for turns in talks_] == PERSONA.prompts[:16]


def test_whether_the_reading_can_be_believed(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that knows the side has 1, one of noise about a half; controls stand beside it."""
    policy = make_policy()
    prompts = [f"What about number {n}?" for n in range(6)]
    sampling = Sampling(4, 1.0, (3,))
    seen: list[Conversation] = []

    def knows(_policy: Any, _persona: Any, given: list[Conversation]) -> list[float | None]:
        seen.extend(given)
        return [1.0 if PERSONA.positive in talk.turns[0].text else -1.0 for talk in given]

    monkeypatch.setattr(shown, "shown_nats", knows)
    found = validate_shown(policy, PERSONA, prompts, sampling)
    assert found["n"] == 12
    assert found["shown"]["auroc"] == 1
    assert [talk.turns[1].text for talk in seen] == [p for p in prompts for _ in range(2)]
    assert set(found) == {"n", "shown", "tokens", "first_person"}
    monkeypatch.setattr(shown, "shown_nats", lambda _p, _q, given: [None] * len(given))
    nothing = validate_shown(policy, PERSONA, prompts, sampling)["shown"]
    assert nothing == {"auroc": None, "ci95": None}
    monkeypatch.setattr(shown, "shown_nats", lambda _p, _q, given: [0.0] * len(given))
    constant = validate_shown(policy, PERSONA, prompts, sampling)["shown"]
    assert constant["auroc"] == 0.5
    assert list(constant["ci95"]) == [0.5, 0.5]
