"""A trainer, a bot, a signal, a reward term and an evaluation from outside this package.

The package is read out of docs/extending.md, so that what stands there runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from homeostat.config.bots import OwnBotConfig
from homeostat.config.checks import as_object
from homeostat.config.register import CONF, build, checked, register
from homeostat.config.resume import checkpoints_in, read_config, save_config
from homeostat.config.run import RunConfig
from homeostat.config.trainers import OwnTrainerConfig, PPOConfig
from homeostat.config.upgrade import schema_path
from homeostat.errors import HomeostatError
from homeostat.runs.checkpoint import read_state
from homeostat.runs.work import check_own
from homeostat.types import Bot, Bots

pytestmark = pytest.mark.slow  # a whole run of a package of the user's

PAGE = CONF.parent / "docs" / "extending.md"
FILE = re.compile(r"^`([^`\s]+)`\n\n```\w+\n(.*?)^```$", re.M | re.S)
CHOSEN = ("trainer=best_of_batch", "bot=guests", "reward=polite", "+evaluation=manners")
TYPED = (
    *CHOSEN,
    *("model=tiny_random", "scale=smoke", "device=cpu", "tracker=none", "eval.episodes=2"),
    *("signals=[intrinsic,politeness]", "eval.suite=[manners]", "eval.items={manners: null}"),
    "eval.files.manners=manners.jsonl",
    # Of the affects, which this run leaves unmeasured.
    *(
        f"reward.set_points.{name}.weight=0"
        for name in ("sentiment", "curiosity", "frustration", "confusion", "boredom")
    ),
)
# What goes wrong in a user's own code.
WRONG = """
from homeostat.trainers.base import AdapterTrainer
from homeostat.trainers.ppo import PPO


class MyPPO(PPO):
    pass


class NoStep(AdapterTrainer):
    @classmethod
    def footprint(cls, config, length):
        return None


class Spawns:
    def __init__(self, config, size):
        pass

    def spawn(self, seed):
        return seed


number = 3
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package of docs/extending.md, on the Python path."""
    root = tmp_path_factory.mktemp("project")
    files = dict(FILE.findall(PAGE.read_text(encoding="utf-8")))
    files |= {"mine/__init__.py": "", "mine/wrong.py": WRONG}
    files["conf/trainer/my_ppo.yaml"] = (
        "defaults: [ppo]\n_target_: mine.wrong.MyPPO\nname: my_ppo\n"
    )
    for place, text in files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def command_line(project: Path, *arguments: str, code: int = 0) -> str:
    """What is said on the way to an exit code: standard output, or the error."""
    paths = [str(project), str(CONF.parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HOMEOSTAT_CACHE": str(project / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "homeostat.cli", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def folder(project: Path) -> Path:
    """A whole run of the five."""
    said = command_line(project, "--config-dir", "conf", *TYPED, "hydra.run.dir=run")
    assert "best_of_batch on tiny_random, bot guests" in said
    assert "update 2/2" in said
    return project / "run"


def chosen(project: Path, *overrides: str) -> RunConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [f"hydra.searchpath=[file://{project / 'conf'}]", *TYPED, *overrides]
        config = as_object(compose("config", overrides=found))
    assert isinstance(config, RunConfig)
    return config


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_page_holds_all_five() -> None:
    found = [place for place, _ in FILE.findall(PAGE.read_text(encoding="utf-8"))]
    folders = ["trainer", "bot", "signals", "reward", "evaluation"]
    assert [p.split("/")[1] for p in found if p.startswith("conf/")] == folders


def test_a_trainer_of_ones_own_trains_logs_and_keeps_checkpoints(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["trainer"], summary["steps"]) == (
        "finished",
        "best_of_batch",
        2,
    )
    assert summary["planned_mb"] > 0
    assert all(row["optim/loss"] > 0 for row in rows(folder / "metrics.jsonl"))
    state = read_state(checkpoints_in(folder / "checkpoint")[-1])
    assert state["trainer"]["done"] == 2
    assert "BEST_OF_BATCH on tiny_random" in (folder / "report.html").read_text()


def test_a_bot_of_ones_own_plays_every_episode(folder: Path) -> None:
    for path in (folder / "episodes.jsonl", folder / "evals" / "homeostasis.jsonl"):
        for row in rows(path):
            assert row["bot"] == "guests"
            assert row["turns"][0]["text"].startswith("Good morning! Would you tell me about the ")
            assert row["turns"][2]["affect"] == {"sentiment": -0.4}


def test_a_signal_of_ones_own_is_known_like_any_other(folder: Path) -> None:
    step = rows(folder / "metrics.jsonl")[0]
    assert step["signal/politeness_mean"] == 0.0
    assert step["reward/term/politeness"] == pytest.approx(-0.4)
    told = [turn["signals"] for turn in rows(folder / "episodes.jsonl")[0]["turns"][1::2]]
    assert all(list(signals)[-1] == "politeness" for signals in told)
    points = json.loads((folder / "set_points.json").read_text())
    assert points["set_points"]["politeness"]["setpoint"] == 0.1
    assert points["signals"]["politeness"]["quantiles"]["0.5"] == 0.0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["eval"]["signal/politeness"]["before"] == 0.0
    assert "<td>politeness</td>" in (folder / "report.html").read_text()


def test_what_follows_from_ones_own_code_is_not_kept(project: Path, folder: Path) -> None:
    del folder
    kept = {path.name for path in (project / "cache").iterdir()}
    assert "suite" in kept
    assert not kept & {"set_points", "failures"}


def test_a_reward_term_of_ones_own_is_paid(folder: Path) -> None:
    for row in rows(folder / "metrics.jsonl"):
        assert -0.5 <= row["reward/own/brevity"] < 0
        assert row["reward/total"] == pytest.approx(
            row["reward/valence"] + row["reward/own/brevity"]
        )


def test_an_evaluation_of_ones_own_measures_both_arms(folder: Path) -> None:
    found = rows(folder / "evals" / "manners.jsonl")
    assert [row["arm"] for row in found] == ["base"] * 3 + ["trained"] * 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["suite"]["manners"]["claim"] == "manners"


def test_a_run_of_ones_own_parts_goes_on_without_its_config_folder(
    project: Path, folder: Path
) -> None:
    killed = project / "killed"
    shutil.copytree(folder, killed)
    shutil.rmtree(checkpoints_in(killed / "checkpoint")[-1])
    (killed / "summary.json").unlink()
    (project / "conf").rename(project / "conf_away")
    try:
        refused = command_line(project, "resume=killed", code=1)
        assert "names what is not homeostat's own, which was neither imported" in refused
        allowed = re.search(r"add '(allow_targets=\S+)'", refused)
        assert allowed is not None
        said = command_line(project, "resume=killed", allowed[1])
    finally:
        (project / "conf_away").rename(project / "conf")
    assert "update 2/2" in said
    assert "update 1/2" not in said
    assert read_config(killed) == read_config(folder)
    for name in (
        "metrics.jsonl",
        "episodes.jsonl",
        "evals/homeostasis.jsonl",
        "evals/manners.jsonl",
    ):
        assert (killed / name).read_bytes() == (folder / name).read_bytes()
    for path in (folder / "adapters").glob("*.safetensors"):
        assert (killed / "adapters" / path.name).read_bytes() == path.read_bytes()


def test_own_options_have_schemas_of_their_own(project: Path) -> None:
    config = chosen(project)
    assert isinstance(config.trainer, OwnTrainerConfig)
    assert config.trainer.options == {"share": 0.5}
    assert isinstance(config.bot, OwnBotConfig)
    assert config.signals.names[-1] == "politeness"
    check_own(config)


def test_a_packaged_trainer_is_inherited_with_its_values(project: Path, tmp_path: Path) -> None:
    config = chosen(project, "trainer=my_ppo", "trainer.clip_range=0.1")
    assert isinstance(config.trainer, PPOConfig)
    assert (config.trainer.name, config.trainer.clip_range) == ("my_ppo", 0.1)
    check_own(config)
    save_config(config, [], tmp_path)
    assert schema_path("trainer", read_config(tmp_path)["trainer"]) == "schema/trainer/ppo"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer._target_=mine.nowhere.T"], "mine.nowhere.T cannot be imported"),
        (["trainer._target_=mine.wrong.NoStep"], "is no Trainer: the class lacks step."),
        (
            ["trainer._target_=mine.bot.Guests"],
            "is no Trainer: the class lacks state_dict, load_state_dict, footprint",
        ),
        (["trainer._target_=mine.wrong.number"], "mine.wrong.number cannot be called"),
        (["bot._target_=mine.bot.Guest"], "is no Bots: the class lacks spawn."),
        (
            ["signals.own.politeness._target_=mine.signal.rude"],
            "signals.own.politeness._target_=mine.signal.rude cannot be imported",
        ),
        (
            ["signals.own.politeness._target_=mine.wrong.number"],
            "signals.own.politeness._target_=mine.wrong.number is no callable",
        ),
        (
            ["reward.terms.brevity._target_=mine.term.length"],
            "reward.terms.brevity._target_=mine.term.length cannot be imported",
        ),
    ],
)
def test_a_wrong_target_is_named_before_anything_is_loaded(
    project: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(HomeostatError, match=re.escape(said)):
        check_own(chosen(project, *overrides))


def test_a_class_that_is_not_made_from_its_config_is_named(project: Path) -> None:
    config = chosen(project, "bot._target_=mine.wrong.Spawns")
    with pytest.raises(HomeostatError, match=r"cannot be called with its config: missing a req"):
        build(config.bot, Bots)


def test_a_population_that_spawns_no_user_is_named() -> None:
    with pytest.raises(HomeostatError, match=r"mine makes a int, which is no Bot: it lacks name, "):
        checked(3, Bot, "spawn of mine")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+signals.own.entropy={_target_: a.b}", "signals.own.entropy has the name of a packaged"),
        ("+signals.own.boredom={_target_: a.b}", "signals.own.boredom has the name of a packaged"),
        ("+signals.own.Warmth={_target_: a.b}", "signals.own.Warmth must be called by small"),
        ("+signals.own.warmth={scale: 2}", "signals.own.warmth needs _target_"),
    ],
)
def test_a_signal_of_ones_own_has_a_name_of_its_own_and_a_target(
    composed: Callable[..., RunConfig], override: str, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        composed(override)
