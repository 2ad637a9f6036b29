"""Dialogues under pressure with subjects that are known to flip, or not to."""

from __future__ import annotations

import pytest
from scripted import Scripted, knows, uniform

from homeostat.evals.items import read_items
from homeostat.evals.pressure import (
    ARMS,
    CONTROL,
    PRESSURE,
    TURNS,
    Dispute,
    hold_dialogues,
    message,
    outcome,
    survival,
)
from homeostat.evals.pressure_facts import on_facts
from homeostat.evals.pressure_stances import on_stances

DISPUTES = [Dispute(f"d{i}", f"Question {i}?", "Paris", "Lyon") for i in range(4)]


def rows_of(subject: Scripted, arm: str) -> list[dict]:  # type: ignore[type-arg]
    return [row for row in hold_dialogues(subject, DISPUTES) if row["condition"] == arm]


def holds(text: str, letter: str, _answers: object) -> float:
    """Always the side, whichever letter it stands on."""
    return 2.0 * (f"({letter}) Paris" in text)


def flips_at(turn: int):  # type: ignore[no-untyped-def]
    """Lets go after so many turns that name the other side."""

    def prefers(text: str, letter: str, _answers: object) -> float:
        pushed = text.partition("Which is right?")[0].count("Lyon") >= turn
        return 3.0 * (f"({letter}) {'Lyon' if pushed else 'Paris'}" in text)

    return Scripted(prefers)


def test_outcomes_by_hand() -> None:
    found = outcome([1.0, 0.5, -0.1, 0.2, -3.0, -2.0])
    assert (found["held_at_first"], found["held_at_last"]) == (1, 0)
    assert (found["turn_of_flip"], found["censored"]) == (2, 0)
    assert (found["flips"], found["regressive"], found["progressive"]) == (3, 2, 1)
    assert found["shift"] == -3
    never = outcome([1.0] * 6)
    assert (never["turn_of_flip"], never["censored"], never["flips"]) == (6, 1, 0)
    assert outcome([-1.0] * 6)["turn_of_flip"] == 0


def test_who_never_agrees_never_flips() -> None:
    for arm in ARMS:
        found = rows_of(Scripted(holds), arm)
        assert {row["censored"] for row in found} == {1}
        assert survival(found)["share"] == [1] * (TURNS + 1)


@pytest.mark.parametrize("turn", [1, 3, 5])
def test_who_flips_at_a_turn_is_seen_to_flip_there(turn: int) -> None:
    found = rows_of(flips_at(turn), "pressure")
    assert [row["turn_of_flip"] for row in found] == [turn] * 4
    assert survival(found)["share"] == [1.0] * turn + [0.0] * (TURNS + 1 - turn)
    assert {row["flips"] for row in found} == {1}
    for arm in ("control", "user_right"):
        assert {row["flips"] for row in rows_of(flips_at(turn), arm)} == {0}


def test_a_rate_of_flips_is_recovered_within_its_interval() -> None:
    rows = [
        {"held_at_first": 1.0, **outcome([1.0, *([1.0] * k), *([-1.0] * (5 - k))])}
        for k in [0] * 30 + [2] * 20 + [5] * 50
    ]
    found = survival(rows)
    assert found["share"] == pytest.approx([1, 0.7, 0.7, 0.5, 0.5, 0.5])
    assert found["low"][5] < 0.5 < found["high"][5]
    assert found["n"] == 100


def test_only_dialogues_that_held_at_first_can_let_go() -> None:
    rows = [{**outcome([-1.0] * 6)}, {**outcome([1.0] * 6)}]
    assert survival(rows)["n"] == 1
    assert survival(rows[:1])["share"] == []


def test_a_letter_that_is_liked_cancels_and_no_stance_is_held() -> None:
    for prefers in (uniform, knows, lambda _t, letter, _a: 9.0 * (letter == "B")):
        assert {tuple(row["margins"]) for row in hold_dialogues(Scripted(prefers), DISPUTES)} == {
            (0,) * 6
        }


def test_the_models_own_words_are_fed_back() -> None:
    heard: list[str] = []

    def listens(text: str, _letter: str, _answers: object) -> float:
        heard.append(text)
        return 0.0

    hold_dialogues(Scripted(listens, says=lambda text: f"<{text[:8]}>"), DISPUTES[:1], ("control",))
    assert "<Question>" in heard[0]
    assert "<Please g>" in heard[-1]


def test_every_kind_of_pressure_is_used_and_names_the_other_side() -> None:
    kinds = set()
    for number in range(6):
        said = [message(DISPUTES[0], "pressure", turn, number) for turn in range(TURNS)]
        assert len(set(said)) == TURNS
        assert all("Lyon" in text for text in said)
        kinds |= set(said)
    assert len(kinds) == len(PRESSURE)
    assert "Paris" in message(DISPUTES[0], "user_right", 0, 0)
    assert [message(DISPUTES[0], "control", t, 3) for t in range(TURNS)] == list(CONTROL)


def test_disputes_on_facts_and_on_stances() -> None:
    (fact,) = on_facts([{"id": "f", "question": "Who?", "right": "Ann", "wrong": "Bob"}])
    assert (fact.side, fact.other) == ("Ann", "Bob")
    stances = on_stances(read_items(None, "opinions.jsonl", {"statement": str}))
    assert len(stances) == 60
    assert sum(own.side == "right" for own in stances) == 30
    assert all(own.opening.startswith("Argue") for own in stances)
