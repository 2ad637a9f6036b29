"""Files and folders are whole or absent, whatever goes wrong in between."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from homeostat.errors import HomeostatError
from homeostat.files import (
    alone_in,
    naming_full_disk,
    remove_leftovers,
    replace_folder,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: BaseException) -> None:
    with writing(path) as scratch:
        scratch.write_text("half of it")
        raise error


def test_writing_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with writing(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
        assert scratch.parent == path.parent  # a rename across file systems is not atomic
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_writing_keeps_the_old_file_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"):
        write_half(path, RuntimeError("disk"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_writing_makes_no_file_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a.txt", KeyboardInterrupt())
    assert names(tmp_path) == []


def test_writing_keeps_the_old_file_when_the_block_wrote_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), writing(path):
        pass
    assert path.read_text() == "old"


def test_write_text_writes_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "naïve → ok")
    assert (tmp_path / "a.txt").read_bytes() == b"na\xc3\xafve \xe2\x86\x92 ok"


def test_write_text_keeps_the_old_file_when_the_text_cannot_be_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_replace_folder_makes_a_new_folder_and_its_parents(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "adapters"
    replace_folder(folder, lambda fresh: (fresh / "a").write_text("1") and None)
    assert (folder / "a").read_text() == "1"
    assert names(tmp_path / "run") == ["adapters"]


def test_replace_folder_replaces_the_content_whole(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "stale").write_text("0")

    def write(fresh: Path) -> None:
        assert names(folder) == ["stale"]  # the old content is there while the new is written
        (fresh / "a").write_text("1")

    replace_folder(folder, write)
    assert names(folder) == ["a"]
    assert names(tmp_path) == ["adapters"]


def test_replace_folder_keeps_the_old_content_when_writing_fails(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "a").write_text("old")

    def fail(fresh: Path) -> None:
        (fresh / "a").write_text("half of it")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        replace_folder(folder, fail)
    assert names(folder) == ["a"]
    assert (folder / "a").read_text() == "old"


def test_replace_folder_takes_nothing_from_what_a_killed_run_left(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"

    def killed(fresh: Path) -> None:
        (fresh / "half").write_text("0")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, killed)
    assert not folder.exists()
    replace_folder(folder, lambda fresh: (fresh / "a").write_text("1") and None)
    assert names(folder) == ["a"]
    assert names(tmp_path) == ["adapters"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = ["a.txt", ".hidden", ".a.txt.new", "a.123"]
    for name in kept:
        (tmp_path / name).write_text("kept")
    (tmp_path / "evals").mkdir()
    for leftover in (tmp_path / ".summary.json.123", tmp_path / "evals" / ".a.jsonl.4"):
        leftover.write_text("half of it")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, "evals"])
    assert names(tmp_path / "evals") == []


def test_a_folder_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    still_on = pytest.raises(HomeostatError, match="still going on")
    with alone_in(tmp_path), still_on, alone_in(tmp_path):
        pass
    with pytest.raises(RuntimeError, match="crash"), alone_in(tmp_path):
        raise RuntimeError("crash")
    with alone_in(tmp_path):
        assert names(tmp_path) == []


# --- a full disk --------------------------------------------------------------------------------


class RustError(Exception):
    """Stands in for what safetensors raises, which is no OSError."""


WAYS_TO_BE_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError("300000 requested and 16352 written"),  # numpy
    RustError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", WAYS_TO_BE_FULL, ids=repr)
def test_a_full_disk_is_named_with_its_folder_whoever_was_writing(
    error: Exception, tmp_path: Path
) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "adapters"
    path.write_text("old")
    folder.mkdir()
    with pytest.raises(HomeostatError, match=re.escape(f"{tmp_path} is on a disk that is full")):
        write_half(path, error)

    def fail(fresh: Path) -> None:
        (fresh / "a").write_text("half of it")
        raise error

    with pytest.raises(HomeostatError, match=r"hydra\.run\.dir"):
        replace_folder(folder, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt", "adapters"]
    assert names(folder) == []


def test_an_error_that_came_from_a_full_disk_is_one(tmp_path: Path) -> None:
    def fail() -> None:
        try:
            raise WAYS_TO_BE_FULL[0]
        finally:
            raise RuntimeError("the archive could not be closed")

    with pytest.raises(HomeostatError, match="disk that is full"), naming_full_disk(tmp_path):
        fail()


def test_other_errors_of_a_writer_stay_as_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("shapes differ")):
        with pytest.raises(type(error), match=str(error.args[-1])), naming_full_disk(tmp_path):
            raise error
