"""What becomes of a process whose output nobody takes, or takes in another alphabet."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from homeostat.report.streams import libraries_to

PREPARED = "import sys; from homeostat.report.streams import prepare_process; prepare_process();"
GONE = Path("/dev/full")


def process(code: str, **environment: str) -> subprocess.Popen[bytes]:
    """Python that runs this code once its display has been made harmless."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARED + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def said(code: str, **environment: str) -> tuple[int, bytes, bytes]:
    """Exit status, standard output and standard error."""
    started = process(code, **environment)
    out, err = started.communicate(timeout=60)
    return started.returncode, out, err


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", b"? na?ve"), ("latin-1", b"? na\xefve"), ("utf-8", "→ naïve".encode())],
)
def test_characters_that_the_output_lacks_are_replaced(encoding: str, expected: bytes) -> None:
    code = "print('→ naïve'); print('→ naïve', file=sys.stderr)"
    assert said(code, PYTHONIOENCODING=encoding) == (0, expected + b"\n", expected + b"\n")


def test_an_undecodable_file_name_is_printed() -> None:
    assert said(r"print('caf\udce9')", PYTHONIOENCODING="utf-8") == (0, b"caf?\n", b"")


def test_output_arrives_line_by_line_and_in_order() -> None:
    started = process("print('first'); sys.stdin.read()")
    assert started.stdout is not None
    assert started.stdout.readline() == b"first\n"
    started.communicate(timeout=60)


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    code = f"""
import time
for _ in range(100):
    print('x' * 10_000)
open({str(tmp_path / "whole")!r}, 'w').close()
sys.exit(7)
"""
    started = process(code)
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    started.stderr.close()
    assert started.wait(timeout=60) == 7
    assert (tmp_path / "whole").exists()


@pytest.mark.skipif(not GONE.exists(), reason="needs /dev/full")
def test_a_log_file_on_a_full_disk_ends_nothing() -> None:
    with GONE.open("w") as full:
        command = [sys.executable, "-c", PREPARED + "print('x'); sys.exit(7)"]
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 7


def test_a_file_never_takes_the_place_of_a_closed_output(tmp_path: Path) -> None:
    code = f"f = open({str(tmp_path / 'rows')!r}, 'w'); print('x'); f.write('y'); sys.exit(7)"
    command = f"exec '{sys.executable}' -c \"$0\" >&- 2>&-"
    done = subprocess.run(["sh", "-c", command, PREPARED + code], check=False)
    assert done.returncode == 7
    assert (tmp_path / "rows").read_text() == "y"


def test_a_terminal_that_closes_ends_nothing() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); sys.exit(7)"
    assert said(code)[0] == 7
    ours = "import signal; signal.signal(signal.SIGHUP, print); prepare_process();"
    assert said(ours + "print(signal.getsignal(signal.SIGHUP) is print)")[1] == b"True\n"


def test_output_that_another_has_replaced_stays_as_it_is() -> None:
    code = "import io; sys.stdout = s = io.StringIO(); prepare_process(); sys.exit(sys.stdout is s)"
    assert said(code)[0] == 1


@pytest.mark.parametrize("given", ["module://matplotlib_inline.backend_inline", "TkAgg", ""])
def test_figures_are_drawn_with_agg_whatever_the_environment_says(given: str) -> None:
    code = "import homeostat.report, matplotlib; print(matplotlib.get_backend().lower())"
    assert said(code, MPLBACKEND=given) == (0, b"agg\n", b"")


def test_libraries_find_a_home_where_the_environment_names_none() -> None:
    unset = "import os; del os.environ['HOME']; prepare_process(); print(os.environ['HOME'])"
    code, out, err = said(unset)
    assert (code, err) == (0, b"")
    assert Path(out.decode().strip()).is_dir()


# --- libraries ----------------------------------------------------------------------------------


def test_warnings_of_libraries_are_not_among_the_lines_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "warnings.log"
    code = f"""
import logging, warnings
from pathlib import Path
from homeostat.report.streams import libraries_to
with libraries_to(Path({str(path)!r})):
    for _ in range(3):
        warnings.simplefilter('always')
        warnings.warn('an argument will be renamed', FutureWarning)
    logging.getLogger('library').warning('naïve')
    logging.getLogger('library').info('chatter')
warnings.warn('afterwards')
"""
    assert said(code) == (0, b"", b"")
    text = path.read_text(encoding="utf-8")
    assert text.count("FutureWarning: an argument will be renamed") == 1
    assert "naïve" in text
    assert "chatter" not in text
    assert "afterwards" not in text


def test_a_warning_that_is_asked_to_be_an_error_is_one() -> None:
    code, out, err = said("import warnings; warnings.warn('x')", PYTHONWARNINGS="error")
    assert (code, out) == (1, b"")
    assert b"UserWarning: x" in err


def test_without_a_warning_there_is_no_file(tmp_path: Path) -> None:
    before = list(logging.root.handlers)
    with libraries_to(tmp_path / "warnings.log"):
        pass
    assert list(tmp_path.iterdir()) == []
    assert logging.root.handlers == before


def test_importing_the_package_changes_no_filter_and_no_handler() -> None:
    code = (
        "import logging, signal, sys, warnings\n"
        "def state():\n"
        "    number = signal.SIGTERM\n"
        "    return sys.stdout, logging.root.handlers, signal.getsignal(number), warnings.filters\n"
        "before = [str(found) for found in state()]\n"
        "import homeostat.cli, homeostat.report.streams, homeostat.runs.interrupt\n"
        "assert [str(found) for found in state()] == before\n"
        "assert warnings.showwarning.__module__ == 'warnings'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
