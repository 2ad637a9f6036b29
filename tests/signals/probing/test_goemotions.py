from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from homeostat.errors import HomeostatError
from homeostat.signals.probing.goemotions import fetch_goemotions, is_hub_id, label_row

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "goemotions_dev.jsonl"
NAMES = ["joy", "anger", "curiosity", "neutral"]


@pytest.mark.parametrize(
    ("emotions", "expected"),
    [
        (["neutral"], ("neutral", 0, 0, 0)),
        (["approval", "neutral"], ("pos", 0, 0, 0)),
        (["neutral", "sadness"], ("neg", 0, 0, 0)),
        (["joy", "grief"], ("mixed", 0, 0, 0)),
        (["curiosity"], ("ambiguous", 1, 0, 0)),
        (["surprise", "realization"], ("ambiguous", 0, 0, 0)),
        (["curiosity", "neutral"], ("ambiguous", 1, 0, 0)),
        (["confusion", "curiosity", "gratitude"], ("pos", 1, 1, 0)),
        (["annoyance"], ("neg", 0, 0, 1)),
        (["anger", "love"], ("mixed", 0, 0, 1)),
        (["disappointment", "confusion"], ("neg", 0, 1, 1)),
        (["disapproval"], ("neg", 0, 0, 0)),
        ([], ("ambiguous", 0, 0, 0)),
    ],
)
def test_affects_that_emotions_stand_for(
    emotions: list[str], expected: tuple[str, int, int, int]
) -> None:
    row = label_row("e1", "so it goes", emotions)
    columns = ("sentiment", "curiosity", "confusion", "frustration")
    assert row == {"id": "e1", "text": "so it goes", **dict(zip(columns, expected, strict=True))}


def test_labels_equal_those_of_the_real_file() -> None:
    if not REAL.is_file():
        pytest.skip(f"{REAL} is absent: real data is not part of the project")
    with REAL.open(encoding="utf-8") as stream:
        content = [json.loads(line) for line in stream]
    assert len(content) == 5426
    for row in content:
        found = label_row(row["id"], row["text"], row["labels"])
        assert found == {key: row[key] for key in found}


def hub_dataset(**columns: Any) -> datasets.Dataset:
    """Two comments with their emotions by number, as the hub has them; columns can be replaced."""
    plain = {"text": ["what a day", "why?"], "id": ["e1", "e2"], "labels": [[0, 3], [2]]}
    return datasets.Dataset.from_dict(
        {key: value for key, value in {**plain, **columns}.items() if value is not None}
    )


def named(dataset: datasets.Dataset) -> datasets.Dataset:
    return dataset.cast_column("labels", datasets.List(datasets.ClassLabel(names=NAMES)))


@pytest.mark.parametrize(
    ("path", "split"), [("owner/name", "train"), ("owner/name:validation", "validation")]
)
def test_rows_come_from_the_split_that_is_named(
    path: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((args, kwargs))
        return named(hub_dataset())

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(fetch_goemotions(path))
    assert asked == [(("owner/name", "simplified"), {"split": split})]
    neither = {"confusion": 0, "frustration": 0}
    assert rows == [
        {"id": "e1", "text": "what a day", "sentiment": "pos", "curiosity": 0, **neither},
        {"id": "e2", "text": "why?", "sentiment": "ambiguous", "curiosity": 1, **neither},
    ]


def refusal() -> str:
    """The one sentence in which a hub corpus is refused."""
    with pytest.raises(HomeostatError) as caught:
        list(fetch_goemotions("owner/name"))
    message = str(caught.value)
    assert message.startswith("the corpus owner/name is no file here and could not be fetched")
    assert "\n" not in message
    assert message.endswith("Of hub datasets only GoEmotions is understood.")
    return message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("Couldn't reach 'owner/name' on the Hub\nTraceback"), "Couldn't reach"),
        (FileNotFoundError("no dataset owner/name"), "FileNotFoundError: no dataset owner/name"),
        (ValueError("BuilderConfig 'simplified' not found."), "BuilderConfig 'simplified'"),
        (TimeoutError(), "TimeoutError: no reason"),
    ],
)
def test_hub_that_fails_is_reported_with_its_first_line(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_args: Any, **_kwargs: Any) -> datasets.Dataset:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal()
    assert reason in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "dataset",
    [
        hub_dataset(labels=None),
        hub_dataset(),
        hub_dataset(labels=["joy", "anger"]),
        named(hub_dataset(text=None)),
        named(hub_dataset(id=None)),
    ],
    ids=["no labels", "numbers without names", "words", "no text", "no id"],
)
def test_dataset_of_another_kind_is_refused(
    dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_kwargs: dataset)
    refusal()


@pytest.mark.parametrize(
    "path",
    [
        "google-research-datasets/go_emotions",
        "google-research-datasets/go_emotions:validation",
        "owner/name.v2",
        "o/n",
    ],
)
def test_hub_ids(path: str) -> None:
    assert is_hub_id(path)


@pytest.mark.parametrize(
    "path",
    [
        "corpus.jsonl",
        "data/corpus.jsonl",
        "data/corpus.JSONL",
        "data/corpus.json",
        "data/corpus.csv",
        "./data/corpus",
        "../data/corpus",
        "~/corpus",
        "/data/corpus",
        "a/b/c",
        "data\\corpus",
        "C:/corpus",
        "C:\\data/corpus",
        "go_emotions",
        "owner/name:",
        "owner/name:train[:9]",
        "owner/",
        "/name",
        "",
    ],
)
def test_file_paths_are_no_hub_ids(path: str) -> None:
    assert not is_hub_id(path)
