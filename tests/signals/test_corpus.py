from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from homeostat.config import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.signals.corpus import Corpus, load_corpus
from homeostat.types import Turn


def rows(groups: int = 12) -> list[dict[str, Any]]:
    """Four rows per group; both classes of each affect in every group."""
    return [
        {
            "text": f"text {g} {n}",
            "group": f"g{g}",
            "sentiment": ("pos", "neg", "neutral", "pos")[n],
            "boredom": int(n == 1),
        }
        for g in range(groups)
        for n in range(4)
    ]


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in found), encoding="utf-8")
    return str(path)


def load(path: Path | str, groups: int | None = None) -> Corpus:
    return load_corpus(str(path), ["sentiment", "boredom"], groups)


def refusal(path: Path | str) -> str:
    with pytest.raises(HomeostatError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def packaged() -> Corpus:
    return load_corpus(None, list(AFFECTS))


def test_packaged_corpus_is_large_enough(packaged: Corpus) -> None:
    for affect in AFFECTS:
        counts = Counter(u.labels.get(affect) for u in packaged.utterances)
        assert counts[1] >= 200, affect
        assert counts[0] >= 200, affect
    neutral = [u for u in packaged.utterances if "sentiment" not in u.labels]
    assert len(neutral) >= 400
    assert len(set(packaged.groups.tolist())) >= 100


def test_packaged_corpus_has_no_row_twice(packaged: Corpus) -> None:
    texts = [tuple(turn.text for turn in u.conversation.turns) for u in packaged.utterances]
    assert len(set(texts)) == len(texts)


def test_packaged_utterances_are_user_turns_after_whole_exchanges(packaged: Corpus) -> None:
    for utterance in packaged.utterances:
        roles = [turn.role for turn in utterance.conversation.turns]
        assert roles in (["user"], ["user", "assistant", "user"])
        assert all(turn.text.strip() for turn in utterance.conversation.turns)


def test_labels(tmp_path: Path) -> None:
    found = load(write(tmp_path / "c.jsonl", rows()))
    assert [u.labels for u in found.utterances[:4]] == [
        {"sentiment": 1, "boredom": 0},
        {"sentiment": 0, "boredom": 1},
        {"boredom": 0},
        {"sentiment": 1, "boredom": 0},
    ]
    assert found.groups.tolist()[:5] == ["g0", "g0", "g0", "g0", "g1"]


def test_context_comes_before_the_text(tmp_path: Path) -> None:
    content = rows()
    content[0]["context"] = ["why?", "because"]
    found = load(write(tmp_path / "c.jsonl", content)).utterances[0].conversation
    assert found.turns == (
        Turn("user", "why?"),
        Turn("assistant", "because"),
        Turn("user", "text 0 0"),
    )


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_only_a_line_feed_ends_a_row(tmp_path: Path, mark: str) -> None:
    """U+2028 and U+0085 may stand unescaped in a JSON string."""
    content = rows()
    content[0]["text"] = f"one{mark}two"
    path = tmp_path / "c.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in content]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = load(path)
    assert len(found.utterances) == len(content)
    assert found.utterances[0].conversation.turns[-1].text == f"one{mark}two"


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.jsonl"
    assert f"signals.affect.corpus={path} cannot be read" in refusal(path)


@pytest.mark.parametrize("blank", ["", "\n"])
def test_line_that_is_not_json_is_named_by_its_number(tmp_path: Path, blank: str) -> None:
    """Blank lines are skipped, but they count."""
    lines = [json.dumps(row) for row in rows()]
    lines[2] = "{broken"
    path = tmp_path / "c.jsonl"
    path.write_text(blank + "\n".join(lines))
    number = path.read_text().split("\n").index("{broken") + 1
    assert f"{path}, line {number} is not JSON" in refusal(path)


def test_row_that_is_no_object_is_named_by_its_number(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows()]
    lines[2] = "7"
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(lines))
    assert f"{path}, line 3 " in refusal(path)


@pytest.mark.parametrize("column", ["text", "group", "sentiment", "boredom"])
def test_missing_column_is_named(tmp_path: Path, column: str) -> None:
    content = rows()
    del content[4][column]
    path = write(tmp_path / "c.jsonl", content)
    assert f"{path}, line 5 has no {column};" in refusal(path)


@pytest.mark.parametrize("label", [2, -1, 0.7, "yes", None])
def test_label_that_is_neither_0_nor_1_is_refused(tmp_path: Path, label: Any) -> None:
    content = rows()
    content[4]["boredom"] = label
    path = write(tmp_path / "c.jsonl", content)
    message = refusal(path)
    assert f"{path}, line 5 " in message
    assert "boredom" in message


@pytest.mark.parametrize(
    ("affect", "label", "found"), [("boredom", 0, "0"), ("sentiment", "pos", "1")]
)
def test_one_class_is_named(tmp_path: Path, affect: str, label: Any, found: str) -> None:
    path = write(tmp_path / "c.jsonl", [row | {affect: label} for row in rows()])
    assert f"{path} has only one class of {affect} ({found});" in refusal(path)


def test_sentiment_without_either_class_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [row | {"sentiment": "neutral"} for row in rows()])
    assert f"{path} has only one class of sentiment (none);" in refusal(path)


def test_too_few_groups_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows(groups=9))
    assert f"{path} has 9 groups; at least 10" in refusal(path)
    assert len(load(write(tmp_path / "enough.jsonl", rows(groups=10))).utterances) == 40


def test_empty_file_is_refused(tmp_path: Path) -> None:
    assert " has 0 groups" in refusal(write(tmp_path / "c.jsonl", []))


@pytest.mark.parametrize("count", [10, 13, 23])
def test_author_groups_keeps_that_many_whole_groups(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "c.jsonl", rows(groups=24))
    sizes = Counter(load(path, count).groups.tolist())
    assert len(sizes) == count
    assert set(sizes.values()) == {4}
    numbers = sorted(int(name[1:]) for name in sizes)
    assert numbers[0] == 0
    assert max(b - a for a, b in zip(numbers, [*numbers[1:], 24], strict=True)) <= 24 / count + 1


def test_author_groups_above_the_number_of_groups_keeps_all(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows())
    assert load(path, 50).utterances == load(path).utterances


def test_digest_tells_contents_and_sizes_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows())
    changed = rows()
    changed[0]["text"] = "other"
    other = write(tmp_path / "d.jsonl", changed)
    copy = write(tmp_path / "e.jsonl", rows())
    assert load(path).digest == load(copy).digest
    assert len({load(path).digest, load(path, 10).digest, load(other).digest}) == 3
