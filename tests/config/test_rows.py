"""The reader of files of lines: what counts as a line, and what a bad one is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homeostat.config.rows import read_rows
from homeostat.errors import HomeostatError
from homeostat.evals.foundations import read_vignettes
from homeostat.evals.items import read_items
from homeostat.report.metrics import write_rows
from homeostat.runs.arm_log import ArmLog
from homeostat.signals.probing.corpus import load_corpus
from homeostat.steering.vectors import read_contexts

BREAKS = "one\u2028two\u2029three\u0085four\x0bfive\x1csix"
ROW = {"id": "a", "kind": "k", "text": BREAKS, "foundation": "care", "sentiment": "pos"}
ROWS = [
    ROW
    | {"id": str(n), "group": str(n), "text": f"{BREAKS} {n}", "sentiment": ("pos", "neg")[n % 2]}
    for n in range(12)
]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
READERS: dict[str, Callable[[str], list[str]]] = {
    "rows": lambda path: [row["text"] for _, row in read_rows(path)],
    "items": lambda path: [item["text"] for item in read_items(path, None, {"text": str})],
    "vignettes": lambda path: [vignette.text for vignette in read_vignettes(path)],
    "contexts": lambda path: [context.text for context in read_contexts(path)],
    "corpus": lambda path: load_corpus(path, ["sentiment"]).texts,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "raw",
    [
        "\n".join(LINES).encode(),
        b"\xef\xbb\xbf" + "\r\n".join(LINES).encode() + b"\r\n",
        ("\n\n" + "\n  \n".join(LINES) + "\n\n\n").encode(),
    ],
    ids=["breaks within strings", "mark and CRLF", "blank lines"],
)
def test_a_line_ends_at_a_line_feed_alone(
    read: Callable[[str], list[str]], raw: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(raw)
    assert read(str(path)) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"text": "caf\xe9"}'.encode("latin-1"), "is not UTF-8 text (byte 0xe9)"),
        (b"{broken", "is not JSON"),
        (b'"a text"', "is no object with keys"),
        (b'{"text": "\\ud83d"}', "has half a character"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_file(
    read: Callable[[str], list[str]], bad: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(LINES[0].encode() + b"\n\n" + bad + b"\n" + LINES[1].encode())
    with pytest.raises(HomeostatError) as error:
        read(str(path))
    assert f"{path}, line 3" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_missing_file_and_a_folder_are_named(
    read: Callable[[str], list[str]], tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "nowhere.jsonl"):
        with pytest.raises(HomeostatError, match="cannot be read") as error:
            read(str(path))
        assert str(path) in str(error.value)


def test_lines_are_counted_from_1_with_the_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}')
    assert read_rows(path) == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_run_reads_back_what_its_model_said(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"round": 0, "stage": "base", "reply": BREAKS}]
    write_rows(tmp_path / "evals" / "diary.jsonl", rows)
    log = ArmLog(tmp_path)
    log.resume(0)
    assert log.rows["evals/diary.jsonl"] == rows
