"""README and docs/ say what can be typed: every command is composed, and run where it can be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from documents import ELSEWHERE, MARKS, ROOT, Command, commands
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from homeostat.cli import LOOKS, at_home, flags_first
from homeostat.config.checks import as_object
from homeostat.config.register import CONF, as_choices, compose_run, register

ALL = commands()
OURS = [one for one in ALL if one.words[0] == "homeostat"]
# What only looks at runs, or at nothing, is typed with the folder of a run.
LOOKING = ("resume", "export", "compare")
FLAGS = ("--help", "--cfg", "-sc", "--hydra-help")
# A whole run in seconds, whatever was typed before it.
SMALL = (
    *("model=tiny_random", "scale=smoke", "device=cpu", "dtype=float32", "tracker=none"),
    *("rollout.turns=1", "rollout.max_new_tokens=4", "eval.episodes=2", "eval.suite=[answer]"),
    *("eval.headroom_users=2", "eval.headroom_replies=2", "eval.prompted=null"),
)
BY_WING = {
    "work.episodes": ("work.updates=1", "work.episodes=4"),
    "work.completions": (
        *("work.rounds=1", "work.completions=4", "trainer.stages.contexts=4"),
        *("trainer.vector.contexts=8", "trainer.min_kept=0"),
    ),
}
SET_SMALL = ("model=", "model.", "scale=", "dtype=", "eval.", "work.", "seed=", "signals.a")


def named(one: Command) -> str:
    return f"{one.page}: {one.line}"


def test_there_are_commands_to_look_at() -> None:
    assert len(OURS) > 50
    assert {"README.md", "first_run.md", "scaling.md", "steer_heal.md"} <= {c.page for c in OURS}


def test_readme_can_be_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def is_looked_at(one: Command) -> bool:
    """Whether a command wants something that a run has left, or composes nothing."""
    keys = {word.lstrip("+").partition("=")[0] for word in one.words}
    return bool(keys & {*LOOKING, *LOOKS, *FLAGS}) or "--config-dir" in one.words


@pytest.mark.parametrize("one", [c for c in OURS if not is_looked_at(c)], ids=named)
def test_every_command_composes(one: Command) -> None:
    as_object(compose_run(*jobs_of(with_places(one.words[1:]))[0]))


def jobs_of(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a command; of a search, one at the ends of its ranges."""
    typed = as_choices(flags_first([at_home(word) for word in arguments]))
    overrides = [word for word in typed if word != "-m"]
    kept = [word for word in overrides if not word.startswith(("hydra.", "hydra/"))]
    searched = any(word.startswith("hydra/sweeper") for word in overrides)
    kept = [word for word in kept if not (searched and "interval(" in word)]
    if "-m" not in arguments:
        return [kept]
    parsed = OverridesParser.create().parse_overrides([*params_of(kept), *kept])
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def params_of(overrides: Sequence[str]) -> list[str]:
    """What an experiment sweeps over by itself."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [word for word in overrides if word.startswith("experiment=")]
        composed = compose("config", overrides=chosen, return_hydra_config=True)
    params = composed.hydra.sweeper.params or {}
    return [f"{key}={value}" for key, value in params.items()]


def with_places(job: Sequence[str]) -> list[str]:
    """Overrides with a folder in the place of `<a folder>`."""
    return [re.sub(r"<[^>]+>", "folder", word) for word in job]


@pytest.mark.parametrize("one", [c for c in ALL if ELSEWHERE.search(c.line)], ids=named)
def test_what_cannot_run_here_says_what_it_needs(one: Command) -> None:
    assert any(mark in one.around for mark in MARKS), f"say that it needs one of {MARKS}"


@pytest.mark.parametrize(
    "one", [c for c in ALL if "scripts/" in c.line and ".py" in c.line], ids=named
)
def test_every_script_and_its_options_are_there(one: Command) -> None:
    path = next(word for word in one.words if word.startswith("scripts/"))
    source = (ROOT / path).read_text(encoding="utf-8")
    for word in one.words:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{path} has no {word}"


@pytest.mark.parametrize("one", [c for c in ALL if c.words[0] == "just"], ids=named)
def test_every_recipe_is_there(one: Command) -> None:
    assert re.search(rf"^{one.words[1]}\b.*:", (ROOT / "justfile").read_text(), re.M)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def shrunk(job: Sequence[str]) -> list[str]:
    """A job of a page, with the tiny model and so little work that it takes seconds."""
    kept = [word for word in job if not word.startswith(SET_SMALL)]
    composed = compose_run(*kept, "model=tiny_random")
    wing = "work.completions" if "stages" in composed.trainer else "work.episodes"
    extra = [*SMALL, *BY_WING[wing]]
    if composed.signals.affect is not None:
        extra.append("signals.affect.require=any")  # random weights read nothing off anybody
    if "group_size" in composed.trainer:
        kept = [word for word in kept if not word.startswith("trainer.group_size")]
        extra.append("trainer.group_size=2")
    return [*kept, *extra]


def to_run() -> dict[str, Command]:
    """A command for each distinct run of the pages, by what tells it from the others."""
    found: dict[str, Command] = {}
    for one in OURS:
        here = not ELSEWHERE.search(one.line) and "_target_" not in one.line
        here &= "bot.path" not in one.line  # another model's folder, or a file
        if here and not is_looked_at(one) and "hydra/" not in one.line:
            words = (word for word in one.words[1:] if not word.startswith(SET_SMALL))
            asked = sorted(word.split(",")[0] for word in words if word != "-m")
            found.setdefault(" ".join(asked) or "the default run", one)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("one", to_run().values(), ids=to_run().keys())
def test_every_run_of_the_pages_runs_small(one: Command, cache: Path, tmp_path: Path) -> None:
    job = shrunk(jobs_of(with_places(one.words[1:]))[0])
    done = subprocess.run(
        [sys.executable, "-m", "homeostat.cli", *job, "hydra.run.dir=run"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HOMEOSTAT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    if shutil.which("mkdocs") is None:
        pytest.skip("mkdocs is not installed; the dev extra has it.")
    done = subprocess.run(
        ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first_run" / "index.html").is_file()
