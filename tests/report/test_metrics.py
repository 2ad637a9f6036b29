"""JSON lines: valid whatever the values, whole or absent."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homeostat.errors import HomeostatError
from homeostat.report.metrics import LOGS, MetricsLog, append_rows, finite, write_rows

NAN, INF = float("nan"), float("inf")


def lines(path: Path) -> list[Any]:
    """The rows of a file, read strictly: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = path.read_bytes().decode("utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.split("\n")[:-1]]


# --- plain --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF, np.float64("nan")])
def test_what_is_no_number_becomes_none(value: float) -> None:
    assert finite(value) is None


@pytest.mark.parametrize("value", [0.0, -1.5, 3, True, None, "nan", "", np.float64(0.5)])
def test_everything_else_stays(value: object) -> None:
    assert finite(value) == value


def test_plain_reaches_into_mappings_lists_and_tuples() -> None:
    value = {"a": [1.0, NAN, {"b": (INF, "x")}], "c": {"d": -INF}}
    assert finite(value) == {"a": [1.0, None, {"b": [None, "x"]}], "c": {"d": None}}


def test_plain_leaves_its_argument_alone() -> None:
    value = {"a": [NAN]}
    finite(value)
    assert np.isnan(value["a"][0])


# --- rows ---------------------------------------------------------------------------------------


def test_append_rows_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": 1, "x": 0.5}, {"step": 2, "x": NAN}])
    append_rows(path, [{"step": 3, "x": INF}])
    assert lines(path) == [
        {"step": 1, "x": 0.5},
        {"step": 2, "x": None},
        {"step": 3, "x": None},
    ]


def test_append_rows_keeps_text_as_it_is_one_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    texts = ['line\nbreak\r\n"quoted"', "naïve → 😀", "a\u2028b\u2029c\x85d\x0be", "[bold]x[/bold]"]
    append_rows(path, [{"text": text} for text in texts])
    assert [row["text"] for row in lines(path)] == texts
    assert "😀".encode() in path.read_bytes()


def test_append_rows_without_rows_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": 1}])
    append_rows(path, [])
    assert lines(path) == [{"step": 1}]


def failing_rows() -> Iterator[dict[str, Any]]:
    yield {"step": 1}
    raise RuntimeError("no more")


def test_append_rows_writes_no_part_of_rows_that_fail(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": 0}])
    with pytest.raises(RuntimeError, match="no more"):
        append_rows(path, failing_rows())
    with pytest.raises(TypeError):
        append_rows(path, [{"step": 1}, {"step": object()}])
    assert lines(path) == [{"step": 0}]


def test_write_rows_replaces_the_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "evals" / "homeostasis.jsonl"
    write_rows(path, [{"a": 1}, {"a": 2}])
    write_rows(path, [{"a": NAN}])
    assert lines(path) == [{"a": None}]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_write_rows_is_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "homeostasis.jsonl"
    write_rows(path, [{"a": 1}])
    with pytest.raises(RuntimeError, match="no more"):
        write_rows(path, failing_rows())
    assert lines(path) == [{"a": 1}]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# --- the log ------------------------------------------------------------------------------------


def test_the_log_writes_metrics_and_episodes_of_every_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, None, print)
    first = {"reward/valence": -2.0, "optim/grad_norm": NAN}
    log.step(1, first, [{"seed": 5}, {"seed": 6}], {"time/update_s": 0.5})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "reward/valence": -2.0, "optim/grad_norm": None}
    ]
    log.step(2, {"reward/valence": -1.0}, [{"seed": 7}], {"time/update_s": 1.5})
    log.close()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert lines(tmp_path / "episodes.jsonl") == [{"seed": 5}, {"seed": 6}, {"seed": 7}]
    assert lines(tmp_path / "timing.jsonl") == [
        {"step": 1, "time/update_s": 0.5},
        {"step": 2, "time/update_s": 1.5},
    ]
    assert {path.name for path in tmp_path.iterdir()} == set(LOGS)


def test_the_logs_can_be_cut_back_to_an_earlier_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, None, print)
    assert log.sizes() == dict.fromkeys(LOGS, 0)
    log.step(1, {"a": 1.0}, [{"seed": 5}], {"time/update_s": 0.5})
    sizes, kept = log.sizes(), [(tmp_path / name).read_bytes() for name in LOGS]
    log.step(2, {"a": 2.0}, [{"seed": 6}], {"time/update_s": 1.5})
    log.truncate(sizes)
    assert [(tmp_path / name).read_bytes() for name in LOGS] == kept
    log.truncate(dict.fromkeys(LOGS, 0))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(HomeostatError, match=r"metrics\.jsonl has 0 bytes"):
        log.truncate(sizes)


# --- a full disk --------------------------------------------------------------------------------


class Disk(io.FileIO):
    """Takes at most seven bytes at once, and in all as many as there is room for."""

    room = 1000

    def write(self, data: Any) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = super().write(data[: min(7, self.room)])
        self.room -= taken
        return taken


def open_on_disk(path: Path, mode: str, buffering: int) -> Disk:
    assert buffering == 0
    return Disk(path, mode)


def test_rows_that_a_full_disk_cut_short_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_disk)
        patch.setattr(Disk, "room", 10)
        with pytest.raises(HomeostatError, match=f"{tmp_path} is on a disk that is full"):
            append_rows(path, [{"step": 2}, {"step": 3}])
    assert lines(path) == [{"step": 1}]


def test_rows_are_whole_though_the_system_takes_them_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_disk)
        append_rows(path, [{"step": 2}, {"step": 3}])
    assert lines(path) == [{"step": 2}, {"step": 3}]
