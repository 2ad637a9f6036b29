from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.signals.probing import corpus as corpus_module
from homeostat.signals.probing.corpus import Corpus, load_corpus
from homeostat.types import Turn

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
REAL = ("goemotions_dev.jsonl", "goemotions_train_sample.jsonl")


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


def write(path: Path, found: list[dict[str, Any]], encoding: str = "utf-8") -> str:
    path.write_text("\n".join(json.dumps(row) for row in found), encoding=encoding)
    return str(path)


def write_csv(path: Path, found: list[dict[str, Any]], encoding: str = "utf-8") -> str:
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in found for key in row)))
        writer.writeheader()
        writer.writerows(found)
    return str(path)


def load(path: Path | str, groups: int | None = None) -> Corpus:
    return load_corpus(str(path), ["sentiment", "boredom"], groups)


def refusal(path: Path | str) -> str:
    """The one sentence in which a corpus is refused."""
    with pytest.raises(HomeostatError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert message.endswith(".")
    return message


@pytest.fixture(scope="module")
def packaged() -> Corpus:
    return load_corpus(None, list(AFFECTS))


def test_packaged_corpus_is_large_enough(packaged: Corpus) -> None:
    for affect in AFFECTS:
        counts = Counter(u.labels.get(affect) for u in packaged.utterances)
        assert counts[1] >= 200, affect
        assert counts[0] >= 200, affect
    assert Counter(packaged.labels("sentiment").tolist())[-1] >= 400
    assert packaged.notices == ()
    assert set(packaged.affects) == set(AFFECTS)
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
        {"sentiment": -1, "boredom": 0},
        {"sentiment": 1, "boredom": 0},
    ]
    assert found.groups.tolist()[:5] == ["g0", "g0", "g0", "g0", "g1"]
    assert found.texts[:2] == ["text 0 0", "text 0 1"]
    assert found.labels("sentiment").tolist()[:4] == [1, 0, -1, 1]
    assert found.affects == ("sentiment", "boredom")
    assert found.notices == ()
    assert found.source == str(tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("pos", 1),
        ("positive", 1),
        ("Positive", 1),
        ("neg", 0),
        (" negative", 0),
        ("neutral", -1),
        ("ambiguous", -2),
        ("mixed", -2),
        ("", -2),
        (None, -2),
    ],
)
def test_words_of_sentiment(tmp_path: Path, word: str | None, label: int) -> None:
    """-1 is neither, -2 is no label at all."""
    content = rows()
    content[5]["sentiment"] = word
    found = load(write(tmp_path / "c.jsonl", content))
    assert found.labels("sentiment")[5] == label
    assert ("sentiment" in found.utterances[5].labels) == (label != -2)
    assert found.labels("boredom")[5] == 1


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, 0),
        (1, 1),
        ("0", 0),
        ("1", 1),
        (False, 0),
        (True, 1),
        ("false", 0),
        ("True", 1),
        ("", -2),
        (None, -2),
    ],
)
def test_words_of_other_affects(tmp_path: Path, value: Any, label: int) -> None:
    content = rows()
    content[4]["boredom"] = value
    assert load(write(tmp_path / "c.jsonl", content)).labels("boredom")[4] == label


def test_affect_that_one_row_lacks_is_unlabelled_there(tmp_path: Path) -> None:
    content = rows()
    del content[4]["boredom"]
    found = load(write(tmp_path / "c.jsonl", content))
    assert found.labels("boredom").tolist()[3:6] == [0, -2, 1]
    assert found.notices == ()


def test_row_without_group_goes_by_its_id_else_stands_alone(tmp_path: Path) -> None:
    content = rows()
    for row in content[:4]:
        del row["group"]
    content[0]["id"] = content[1]["id"] = "same author"
    content[4]["id"] = "less than a group"
    content[5]["group"] = 0
    groups = load(write(tmp_path / "c.jsonl", content)).groups.tolist()
    assert groups[:2] == ["same author"] * 2
    assert groups[2] != groups[3]
    assert len(set(groups)) == 1 + 2 + 11 + 1
    assert groups[4:7] == ["g1", "0", "g1"]


def test_context_comes_before_the_text(tmp_path: Path) -> None:
    content = rows()
    content[0]["context"] = ["why?", "because"]
    found = load(write(tmp_path / "c.jsonl", content)).utterances[0]
    assert found.conversation.turns == (
        Turn("user", "why?"),
        Turn("assistant", "because"),
        Turn("user", "text 0 0"),
    )
    assert found.text == "text 0 0"


def test_csv_gives_the_utterances_of_the_same_jsonl(tmp_path: Path) -> None:
    content = rows()
    content[0]["text"] = 'commas, "quotes"\r\nand two lines'
    content[3]["sentiment"] = "mixed"
    content[6]["boredom"] = ""
    expected = load(write(tmp_path / "c.jsonl", content)).utterances
    assert load(write_csv(tmp_path / "c.csv", content)).utterances == expected
    assert load(write_csv(tmp_path / "C.CSV", content)).utterances == expected


def test_context_in_csv_is_a_json_list(tmp_path: Path) -> None:
    content = rows()
    content[0]["context"] = json.dumps(["why, then?", "because"])
    found = load(write_csv(tmp_path / "c.csv", content)).utterances
    assert [turn.text for turn in found[0].conversation.turns] == [
        "why, then?",
        "because",
        "text 0 0",
    ]
    assert len(found[1].conversation.turns) == 1


def test_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    expected = load(write(tmp_path / "c.jsonl", rows())).utterances
    assert load(write(tmp_path / "d.jsonl", rows(), "utf-8-sig")).utterances == expected
    assert load(write_csv(tmp_path / "d.csv", rows(), "utf-8-sig")).utterances == expected


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_only_a_line_feed_ends_a_row(tmp_path: Path, mark: str) -> None:
    """U+2028 and U+0085 may stand unescaped in a JSON string."""
    content = rows()
    content[0]["text"] = f"one{mark}two"
    path = tmp_path / "c.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in content]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load(path).texts == [row["text"] for row in content]
    assert load(write_csv(tmp_path / "c.csv", content)).texts == [row["text"] for row in content]


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.jsonl"
    assert f"the corpus {path} cannot be read" in refusal(path)


def test_folder_is_refused(tmp_path: Path) -> None:
    assert f"the corpus {tmp_path} cannot be read" in refusal(tmp_path)


def test_other_encoding_than_utf_8_is_refused(tmp_path: Path) -> None:
    content = [row | {"text": "café"} for row in rows()]
    assert "c.csv, line 2 is not UTF-8 text (byte 0xe9)" in refusal(
        write_csv(tmp_path / "c.csv", content, "latin-1")
    )


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


@pytest.mark.parametrize("text", [None, "", "  \n", 7])
def test_row_without_text_is_named_by_its_number(tmp_path: Path, text: Any) -> None:
    content = rows()
    content[4]["text"] = text
    path = write(tmp_path / "c.jsonl", content)
    assert f"{path}, line 5 has no text;" in refusal(path)


def test_csv_without_a_text_column_is_refused(tmp_path: Path) -> None:
    content = [{"message" if key == "text" else key: row[key] for key in row} for row in rows()]
    path = write_csv(tmp_path / "c.csv", content)
    assert f"{path}, line 2 has no text;" in refusal(path)


@pytest.mark.parametrize("label", [2, -1, 0.7, "yes", [1]])
def test_label_that_is_neither_0_nor_1_is_refused(tmp_path: Path, label: Any) -> None:
    content = rows()
    content[4]["boredom"] = label
    message = refusal(write(tmp_path / "c.jsonl", content))
    assert f"c.jsonl, line 5 has boredom={label!r};" in message
    assert "0, 1, 0.0, 1.0, false, true" in message


def test_unknown_word_of_sentiment_is_refused(tmp_path: Path) -> None:
    content = rows()
    content[4]["sentiment"] = "angry"
    path = write_csv(tmp_path / "c.csv", content)
    message = refusal(path)
    assert f"{path}, line 6 has sentiment='angry';" in message
    assert "pos, positive, neg, negative, neutral, ambiguous, mixed" in message


@pytest.mark.parametrize("context", ["why?", ["why?"], ["a", "b", "c"], ["why?", 7], {"a": "b"}])
def test_context_that_does_not_end_with_the_assistant_is_refused(
    tmp_path: Path, context: Any
) -> None:
    content = rows()
    content[4]["context"] = context
    path = write(tmp_path / "c.jsonl", content)
    assert f"{path}, line 5 has context={context!r};" in refusal(path)


def test_csv_context_that_is_not_json_is_refused(tmp_path: Path) -> None:
    content = rows()
    content[4]["context"] = "why? because"
    path = write_csv(tmp_path / "c.csv", content)
    assert f"{path}, line 6: its context is not JSON" in refusal(path)


def test_csv_quote_that_nobody_closes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('text,boredom\n"never closed,1\n' + "text,0\n" * 30_000)
    assert f"{path}, line " in refusal(path)


@pytest.mark.parametrize(
    ("affect", "label"), [("boredom", 0), ("boredom", 1), ("sentiment", "pos")]
)
def test_affect_with_one_class_is_left_out_with_a_notice(
    tmp_path: Path, affect: str, label: Any
) -> None:
    path = write(tmp_path / "c.jsonl", [row | {affect: label} for row in rows()])
    found = load(path)
    (notice,) = found.notices
    assert notice.startswith(f"{path} has no {affect} with both classes;")
    assert {affect, *found.affects} == {"sentiment", "boredom"}
    assert len(found.affects) == 1


def test_neutral_is_no_class_of_sentiment(tmp_path: Path) -> None:
    content = rows()
    for row in content:
        row["sentiment"] = "neutral" if row["sentiment"] == "neg" else row["sentiment"]
    assert load(write(tmp_path / "c.jsonl", content)).affects == ("boredom",)


def test_affect_without_a_column_is_left_out_with_a_notice(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows())
    found = load_corpus(path, list(AFFECTS))
    absent = [affect for affect in AFFECTS if affect not in ("sentiment", "boredom")]
    assert [notice.split(" with both")[0] for notice in found.notices] == [
        f"{path} has no {affect}" for affect in absent
    ]
    assert set(found.labels("curiosity").tolist()) == {-2}
    assert found.affects == ("sentiment", "boredom")


def test_column_that_nobody_asked_for_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [row | {"sentiment": "whatever"} for row in rows()])
    assert load_corpus(path, ["boredom"]).affects == ("boredom",)


def test_no_usable_affect_at_all_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"text": row["text"]} for row in rows()])
    assert f"{path} has no affect with both classes among sentiment, boredom;" in refusal(path)


def test_too_few_groups_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows(groups=9))
    assert f"{path} has 9 groups; at least 10" in refusal(path)
    assert len(load(write(tmp_path / "enough.jsonl", rows(groups=10))).utterances) == 40


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    assert " has 0 groups" in refusal(write(tmp_path / name, []))


@pytest.mark.parametrize("count", [10, 37])
def test_author_groups_keeps_that_many_whole_groups(packaged: Corpus, count: int) -> None:
    """They are spread evenly over the file; of the simulated users the same share is kept."""

    def split(corpus: Corpus) -> tuple[Counter[str], Counter[str]]:
        users = [bool(utterance.levels) for utterance in corpus.utterances]
        parts = (corpus.groups[[u == graded for u in users]].tolist() for graded in (False, True))
        authors, graded = (Counter(part) for part in parts)
        return authors, graded

    (whole, every_user), (kept, users) = (
        split(packaged),
        split(load_corpus(None, list(AFFECTS), count)),
    )
    assert len(kept) == count
    assert len(users) / len(every_user) == pytest.approx(count / len(whole), abs=0.01)
    assert all(whole[group] == size for group, size in kept.items())
    at = [place for place, group in enumerate(whole) if group in kept]
    assert at[0] == 0
    gaps = [b - a for a, b in zip(at, [*at[1:], len(whole)], strict=True)]
    assert max(gaps) <= len(whole) / count + 1


def test_author_groups_above_the_number_of_groups_keeps_all(packaged: Corpus) -> None:
    found = load_corpus(None, list(AFFECTS), 10**6)
    assert found.utterances == packaged.utterances


def test_author_groups_leaves_a_corpus_of_the_users_own_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows(groups=24))
    assert load(path, 10) == load(path)
    assert len(load(path, 10).utterances) == 96


def test_digest_tells_contents_and_sizes_apart(tmp_path: Path, packaged: Corpus) -> None:
    changed = rows()
    changed[0]["text"] = "other"
    digest = load(write(tmp_path / "c.jsonl", rows())).digest
    assert load(write(tmp_path / "e.jsonl", rows())).digest == digest
    assert load(write(tmp_path / "d.jsonl", changed)).digest != digest
    sizes = {load_corpus(None, list(AFFECTS), count).digest for count in (10, 11)}
    assert len(sizes | {packaged.digest}) == 3


def stub_hub(monkeypatch: pytest.MonkeyPatch, found: list[dict[str, Any]]) -> list[str]:
    """Let the hub hold these rows; what is asked of it is collected."""
    asked: list[str] = []

    def fetch(path: str) -> list[dict[str, Any]]:
        asked.append(path)
        return found

    monkeypatch.setattr(corpus_module, "fetch_goemotions", fetch)
    return asked


def test_hub_id_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = stub_hub(monkeypatch, rows())
    found = load("owner/name:dev")
    assert asked == ["owner/name:dev"]
    assert found.source == "owner/name:dev"
    assert found.utterances == load(write(tmp_path / "c.jsonl", rows())).utterances
    stub_hub(monkeypatch, rows(groups=11))
    assert load("owner/name:dev").digest != found.digest


def test_file_that_is_named_like_a_hub_id_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = stub_hub(monkeypatch, [])
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name", rows())
    assert len(load("owner/name").utterances) == 48
    assert asked == []


@pytest.mark.parametrize("name", REAL)
def test_real_corpus_loads_as_it_is(name: str) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: real data is not part of the project")
    with path.open(encoding="utf-8") as stream:
        content = [json.loads(line) for line in stream]
    found = load_corpus(str(path), list(AFFECTS))
    assert found.texts == [row["text"] for row in content]
    assert found.groups.tolist() == [row["id"] for row in content]
    label = {"pos": 1, "neg": 0, "neutral": -1, "ambiguous": -2, "mixed": -2}
    assert found.labels("sentiment").tolist() == [label[row["sentiment"]] for row in content]
    for affect in ("curiosity", "confusion", "frustration"):
        assert found.labels(affect).tolist() == [row[affect] for row in content]
    (notice,) = found.notices
    assert "no boredom" in notice


# --- graded messages ----------------------------------------------------------------------------


def test_a_level_is_a_target_and_no_class(tmp_path: Path) -> None:
    content = rows()
    content[0] |= {
        "boredom": None,
        "boredom_level": 0.3,
        "sentiment": None,
        "sentiment_level": -0.5,
    }
    found = load(write(tmp_path / "c.jsonl", content))
    assert found.utterances[0].levels == {"boredom": 0.3, "sentiment": -0.5}
    assert found.labels("boredom")[0] == found.labels("sentiment")[0] == -2
    assert found.targets("boredom")[:2].tolist() == [0.3, 1.0]
    assert found.targets("sentiment")[:3].tolist() == [0.25, 0.0, -1.0]


@pytest.mark.parametrize(
    ("affect", "level"),
    [
        ("boredom", 1.1),
        ("boredom", -0.1),
        ("boredom", "much"),
        ("boredom", True),
        ("sentiment", -2),
    ],
)
def test_a_level_out_of_range_is_refused(tmp_path: Path, affect: str, level: object) -> None:
    content = rows()
    content[3][f"{affect}_level"] = level
    said = refusal(write(tmp_path / "c.jsonl", content))
    assert f"line 4 has {affect}_level={level!r}; it must be a number from" in said
