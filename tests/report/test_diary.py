"""The diary by hand: what is marked as new, and beside which answer."""

from __future__ import annotations

import pytest

from homeostat.report.diary import marked, read_diary, share_new


def test_new_words_are_marked_and_nothing_is_lost() -> None:
    before, after = "I love the sea.", "I truly love the\nwide, wide sea."
    parts = marked(before, after)
    assert "".join(text for text, _ in parts) == after
    assert parts == [
        ("I", False),
        (" truly", True),
        (" love the", False),
        ("\nwide, wide", True),
        (" sea.", False),
    ]
    assert share_new(before, after) == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ("a b", "A b", 0.0),
        ("a b", "b a", 0.5),
        ("a b", "c d", 1.0),
        ("", "a", 1.0),
        ("a", "", None),
    ],
)
def test_share_of_new_words(before: str, after: str, share: float | None) -> None:
    assert share_new(before, after) == share


def test_every_answer_stands_beside_the_student_s_last() -> None:
    rows = [
        {"round": 0, "stage": "base", "reply": "one two"},
        {"round": 0, "stage": "prompted", "reply": "one three"},
        {"round": 1, "stage": "steered", "reply": "one two four"},
        {"round": 1, "stage": "dropped", "reply": "nine"},
        {"round": 2, "stage": "steered", "reply": "one two"},
        {"round": 2, "stage": "healed", "reply": "one five"},
        {"round": 3, "stage": "healed", "reply": "one five six"},
    ]
    chapters = read_diary(rows)
    assert [(c.round, [e.stage for e in c.entries]) for c in chapters] == [
        (0, ["base", "prompted"]),
        (1, ["steered", "dropped"]),
        (2, ["steered", "healed"]),
        (3, ["healed"]),
    ]
    new = [entry.new for chapter in chapters for entry in chapter.entries]
    # A dropped round is no answer of the student's: round 2 still stands beside the base.
    assert new == [None, 0.5, pytest.approx(1 / 3), 1.0, 0.0, 0.5, pytest.approx(1 / 3)]
    assert read_diary([]) == []


def test_an_answer_without_words_has_no_parts() -> None:
    rows = [{"round": n, "stage": stage, "reply": ""} for n, stage in ((0, "base"), (1, "healed"))]
    entries = [entry for chapter in read_diary(rows) for entry in chapter.entries]
    assert [(list(entry.parts), entry.new) for entry in entries] == [([], None)] * 2
