"""Measures how long a run takes to its first line, beside the same of another tree.

python scripts/bench_start.py --other TREE [--json] [--repeats 7] [--whole]

TREE is a checkout of homeostat, such as `git worktree add TREE 35792d9`. Both trees are run by this
Python, with the same libraries:

    homeostat scale=smoke tracker=none model=tiny_random

Standard output is a pipe, as it is for a log file. What is timed, always from starting the process:

    first line    the first byte is there
    loaded        the model is there, and with it every library that it needs
    finished      the run is over; only with --whole, else the process is killed where it is loaded

The second figure shows whether what the first one saves is done without, or only done later; the
third does so for what a run needs at its end.

Each round runs both in alternating order and gives one ratio, so that load on the machine meets
both. The round before the first fills the caches of the disk, of Python and of homeostat (a folder
for each tree, thrown away in the end) and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ARGUMENTS = ("scale=smoke", "model=tiny_random")
ENTRY = "import sys; from homeostat.cli import main; sys.exit(main())"  # as the console script does
FIRST, LOADED, FINISHED = "first line", "loaded", "finished"
# What a line says that comes when the moment has; the first line may say anything.
SAYS = {FIRST: b"", LOADED: b"evaluations, base", FINISHED: b"finished: "}
OURS, THEIRS = "this tree", "other tree"
MAX_SHARE = 0.6
PATIENCE_S = 600

Moments = dict[str, float]  # seconds from the start of the process, by what has come


def start_once(tree: Path, cache: Path, until: str) -> Moments:
    """Run homeostat from a tree until a moment has come.

    Args:
        tree: The source tree.
        cache: Where homeostat keeps what it may use again.
        until: The moment; the process is killed then.

    Raises:
        RuntimeError: The process has ended before.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "HOMEOSTAT_CACHE": str(cache)}
    unmirrored = "tracker=none" if (tree / "conf/tracker").is_dir() else "wandb.mode=disabled"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, *ARGUMENTS, unmirrored, f"hydra.run.dir={folder}/run"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            moments = read_moments(process, began, until)
        finally:
            if until != FINISHED or sys.exc_info()[0] is not None:
                process.kill()
            process.communicate(timeout=PATIENCE_S)
        if until not in moments:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            raise RuntimeError(f"{tree}: the run ended before it was {until}. {said}")
        return moments


def read_moments(process: subprocess.Popen[bytes], began: float, until: str) -> Moments:
    """When the moments of a process came; without ``until`` if it has ended before."""
    assert process.stdout is not None
    moments: Moments = {}
    if first := process.stdout.read1(1):  # a pipe's reader would wait for a whole block
        moments[FIRST] = time.perf_counter() - began
    line = first
    while until not in moments and (more := process.stdout.readline()):
        line += more
        for name, says in SAYS.items():
            if name not in moments and says in line:
                moments[name] = time.perf_counter() - began
        line = b""
    return moments


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to each moment in both trees, and the ratios of the rounds, JSON-ready."""
    trees = {OURS: HERE, THEIRS: options.other}
    until = FINISHED if options.whole else LOADED
    rounds: dict[str, list[Moments]] = {name: [] for name in trees}
    with contextlib.ExitStack() as stack:
        caches = {name: Path(stack.enter_context(tempfile.TemporaryDirectory())) for name in trees}
        for number in range(-1, options.repeats):
            for name in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
                moments = start_once(trees[name], caches[name], until)
                if number >= 0:
                    rounds[name].append(moments)
                print(f"round {number + 1}, {name}: {describe(moments)}", file=sys.stderr)
    rows = [compare(moment, rounds[OURS], rounds[THEIRS]) for moment in rounds[OURS][0]]
    return {
        "command": " ".join(("homeostat", *ARGUMENTS)),
        "python": sys.version.split()[0],
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "revisions": {name: revision(tree) for name, tree in trees.items()},
        "rounds": options.repeats,
        "max_share": MAX_SHARE,
        "met": rows[0]["share"] <= MAX_SHARE,
        "moments": rows,
    }


def describe(moments: Mapping[str, float]) -> str:
    """Each moment with its seconds."""
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in moments.items())


def compare(moment: str, ours: Sequence[Moments], theirs: Sequence[Moments]) -> dict[str, Any]:
    """Seconds to a moment in both trees, and ours as a share of theirs, round by round."""
    seconds = {
        name: [one[moment] for one in rounds] for name, rounds in ((OURS, ours), (THEIRS, theirs))
    }
    shares = [own / other for own, other in zip(seconds[OURS], seconds[THEIRS], strict=True)]
    return {
        "moment": moment,
        "seconds": seconds,
        "median_s": {name: statistics.median(spent) for name, spent in seconds.items()},
        "share": statistics.median(shares),
        "share_min": min(shares),
        "share_max": max(shares),
    }


def revision(tree: Path) -> str | None:
    """The commit that a tree is at; None without git."""
    done = subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def table(results: dict[str, Any]) -> list[str]:
    """Lines: seconds to each moment in both trees, with their ranges, and the share."""
    revisions = results["revisions"]
    lines = [
        f"{results['command']}: {revisions[OURS]} (this tree) and {revisions[THEIRS]} (other tree)",
        f"Python {results['python']}, torch {results['torch']}, transformers "
        f"{results['transformers']}, {results['rounds']} rounds",
        f"{'':<12}{'this tree, s':>24}{'other tree, s':>24}{'this / other':>24}",
    ]
    for row in results["moments"]:
        columns = [
            spread(row["median_s"][name], min(row["seconds"][name]), max(row["seconds"][name]))
            for name in (OURS, THEIRS)
        ]
        columns.append(spread(row["share"], row["share_min"], row["share_max"]))
        lines.append(f"{row['moment']:<12}" + "".join(f"{column:>24}" for column in columns))
    verdict = "met" if results["met"] else "NOT met"
    return [*lines, f"first line in at most {results['max_share']} of the other tree: {verdict}"]


def spread(middle: float, low: float, high: float) -> str:
    """A median with its range."""
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", type=Path, required=True, help="the tree to compare with")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--whole", action="store_true", help="let every run come to its end")
    options = parser.parse_args()
    options.other = options.other.expanduser().resolve()
    if not (options.other / "homeostat" / "cli.py").is_file():
        parser.error(f"--other {options.other} is no source tree of homeostat.")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1.")
    return options


def main() -> None:
    """Measure, and print a table or one JSON object."""
    options = parse_options()
    try:
        results = measure(options)
    except RuntimeError as error:
        sys.exit(str(error))
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
