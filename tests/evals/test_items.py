"""Items from packaged and own files: what is read, and what a bad row is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scripted import EVALUATIONS, eval_config

from homeostat.errors import HomeostatError
from homeostat.evals.items import read_items, spread_items
from homeostat.evals.questions import question_sides

QUESTION = {"question": str, "right": str, "wrong": str}


def test_an_own_file_is_read_and_rows_without_an_id_are_called_after_their_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"question": "Who?", "right": "Ann", "wrong": "Bob"}\n\n'
        '{"id": "x", "question": "Where?", "right": "here", "wrong": "there", "more": 1}\n'
    )
    items = read_items(str(path), "facts.jsonl", QUESTION)
    assert [item["id"] for item in items] == ["1", "x"]
    assert items[1]["more"] == 1


CHOICES = {"question": str, "choices": list, "gold": int}


@pytest.mark.parametrize("target", ["two", "B", ["two"]])
def test_multiple_choice_is_read_as_inspect_writes_it(target: object, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    row = {"input": "1 + 1?", "choices": ["one", "two"], "target": target, "id": "sum"}
    path.write_text(json.dumps(row) + "\n")
    (item,) = read_items(str(path), None, CHOICES)
    assert item == {"id": "sum", "question": "1 + 1?", "choices": ["one", "two"], "gold": 1}


def test_a_target_that_is_no_choice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"input": "1 + 1?", "choices": ["one", "two"], "target": "C"}\n')
    with pytest.raises(HomeostatError, match=r"line 1: target='C' is none of its 2 choices"):
        read_items(str(path), None, CHOICES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "Who?", "right": "Ann"}\n', r"line 1: wrong is missing; it must be a str"),
        ('{"question": "Who?", "right": 3, "wrong": "b"}\n', "line 1: right is 3"),
        ("\nnothing\n", "line 2 is not JSON"),
        ("[1]\n", "line 1 is no object"),
        ('{"question": "Who?", "right": "", "wrong": "b"}\n', "line 1: right is empty"),
        (
            '{"id": "x", "question": "?", "right": "a", "wrong": "b"}\n' * 2,
            "line 2: id 'x' is that of line 1; give every item an id of its own",
        ),
        ("\n", "holds no items"),
    ],
)
def test_a_bad_row_is_named_by_its_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(HomeostatError, match=said):
        read_items(str(path), "facts.jsonl", QUESTION)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(
        HomeostatError,
        match=r"nowhere\.jsonl cannot be read \(No such file or directory\); give a JSONL file",
    ):
        read_items("nowhere.jsonl", "facts.jsonl", QUESTION)


def test_fewer_items_come_from_the_whole_list() -> None:
    items = [{"id": str(i)} for i in range(10)]
    assert [i["id"] for i in spread_items(items, 4)] == ["0", "2", "5", "7"]
    assert spread_items(items, None) == spread_items(items, 99) == items


def question(right: str, wrong: str, asked: str = "Who?") -> str:
    return json.dumps({"question": asked, "right": right, "wrong": wrong}) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (question("Ann", " Ann "), "line 1: two of its answers are 'Ann', so nothing tells them"),
        (
            question("Ann", "Bob") + question("Cid", "Dan") + question("Bob", "Ann", " Who? "),
            "line 3 asks what line 1 asks, and what is right in one is wrong in the other",
        ),
        (question("Ann", "Bob") + question("Cid", "Ann"), "line 2 asks what line 1 asks"),
    ],
)
def test_an_item_that_can_measure_nothing_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(HomeostatError, match=re.escape(f"{path}, {said}")):
        read_items(str(path), None, QUESTION, sides=question_sides)


def test_a_question_may_be_asked_twice_with_answers_that_agree(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(question("Ann", "Bob") + question("Ann", "Cid") + question("Dan", "Eve"))
    assert len(read_items(str(path), None, QUESTION, sides=question_sides)) == 3


@pytest.mark.parametrize("name", sorted(EVALUATIONS))
def test_every_packaged_file_passes_its_own_checks(name: str) -> None:
    evaluation = EVALUATIONS[name]
    if evaluation.packaged is not None:
        assert len(evaluation.items(eval_config())) >= 30
