"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from safetensors.torch import load_file

import homeostat.report.html
from homeostat.cli import CONF, explain
from homeostat.config.checks import as_object
from homeostat.config.register import register
from homeostat.config.resume import (
    asked_run,
    changed_values,
    checkpoints_in,
    is_finished,
    kept_overrides,
    read_config,
    refuse_changes,
    resume_command,
    resumed_arguments,
    resumed_config,
    save_config,
    started_in,
)
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.report.console import Console
from homeostat.runs.run import run

pytestmark = pytest.mark.slow  # runs that are killed and go on

STEPS = 4
SMOKE = ("model=tiny_random", "scale=smoke", f"trainer.max_steps={STEPS}", "device=cpu")
# A reward that draws from every global generator, so that each has to be restored.
NOISE = """
import random
import numpy as np
import torch

def noise(conversation, signals, trace):
    turns = conversation.assistant_turns
    return [random.random() + np.random.rand() + float(torch.rand(())) for _ in turns]
"""


class Killed(BaseException):
    """Stands for the kill: nothing in the package catches it."""


def noise(conversation: Any, signals: Any, trace: Any) -> list[float]:  # noqa: ARG001
    """Like NOISE, without Python's own generator: here the type checks draw from it too."""
    return [np.random.rand() + float(torch.rand(())) for _ in conversation.assistant_turns]


IN_PROCESS = (
    *SMOKE,
    "tracker=none",
    "signals=[intrinsic]",
    "reward=intrinsic_only",
    "trainer.max_steps=3",
    "trainer.warmup_steps=3",
    "trainer.batch_size=2",
    "trainer.minibatches=2",
    "eval.episodes=2",
    "eval.suite=[]",
    "rollout.max_new_tokens=3",
    f"+reward.terms.noise={{_target_: {__name__}.noise}}",
)
# Every trainer's own state: a value head; nothing; a critic's adapter and a controller. And half
# precision, with blocks below the adapter that are read once.
TRAINERS = {
    "ppo": IN_PROCESS,
    "grpo": (*IN_PROCESS, "trainer=grpo", "trainer.group_size=2"),
    "ppo_bfloat16": (*IN_PROCESS, "dtype=bfloat16", "lora.layers=[0.5,1.0]"),
    "ppo_lora_pid": (
        *IN_PROCESS,
        *("trainer.critic=lora", "trainer.kl.kind=pid", "trainer.kl.target=0.001"),
        "trainer.lr_decay=linear",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    # As many as in the children; a library of an earlier test may have set it back.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_CACHE", str(folder))
        # The figures take longer than the run, and say nothing here.
        patch.setattr("homeostat.report.html.write_report", lambda folder: folder)
        yield folder


@pytest.fixture(scope="module")
def whole_of(
    composed: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The uninterrupted run of a trainer; the first also fills the cache that all others use."""

    @cache
    def make(trainer: str) -> Path:
        folder = tmp_path_factory.mktemp(f"whole_{trainer}")
        overrides = TRAINERS[trainer]
        run(composed(*overrides), folder, Console(), overrides)
        return folder

    return make


@pytest.fixture(scope="module")
def whole(whole_of: Callable[[str], Path]) -> Path:
    return whole_of("ppo")


def resume(config: RunConfig, folder: Path, overrides: tuple[str, ...] = IN_PROCESS) -> None:
    run(replace(config, resume=str(folder)), folder, Console(), overrides)


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Every byte that does not tell the time is the same."""
    names = ["metrics.jsonl", "episodes.jsonl", "evals/homeostasis.jsonl", "set_points.json"]
    for name in (*names, "config.yaml", "overrides.yaml"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    adapters = [load_file(f / "adapters" / "adapter_model.safetensors") for f in (folder, expected)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())
    steps = [row["step"] for row in rows(folder / "timing.jsonl")]
    assert steps == [row["step"] for row in rows(folder / "metrics.jsonl")]
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, expected)]
    for key in ("status", "steps", "eval", "perception", "staleness", "rewarded_affects"):
        assert summaries[0][key] == summaries[1][key], key
    found, wanted = (
        sorted(p.name for p in (f / "checkpoint").iterdir()) for f in (folder, expected)
    )
    assert found == wanted
    assert not list(folder.rglob(".*")), "something was left behind"


def kill_on(patch: pytest.MonkeyPatch, target: str, call: int, after: bool = False) -> None:
    """Let the ``call``-th call of a function raise, before or after it has done its work."""
    owner, _, name = target.rpartition(".")
    from pydoc import locate

    function, calls = getattr(locate(owner), name), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        found = function(*arguments, **options)
        if calls == call:
            raise Killed
        return found

    patch.setattr(target, dying)


# --- killed in this process ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "call", "after", "done"),
    [
        pytest.param(
            "homeostat.runs.checkpoint.Checkpoints.save", 1, False, 0, id="before the first"
        ),
        pytest.param("homeostat.report.metrics.append_rows", 6, False, 1, id="between the logs"),
        pytest.param("torch.save", 3, True, 2, id="within a checkpoint"),
        pytest.param("homeostat.runs.checkpoint.Checkpoints.save", 3, True, 3, id="after the last"),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    target: str,
    call: int,
    after: bool,
    done: int,
    whole: Path,
    composed: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    config, folder = composed(*IN_PROCESS), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_on(patch, target, call, after)
        with pytest.raises(Killed):
            run(config, folder, Console(), IN_PROCESS)
    found = checkpoints_in(folder / "checkpoint")
    assert (int(found[-1].name[-6:]) if found else 0) == done
    resume(config, folder)
    assert_same_run(folder, whole)


# Not forked from this process: the locks of the threads that torch has here would never open there.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    ["homeostat.runs.run", "homeostat.runs.work", "homeostat.trainers.ppo", "homeostat.models.tiny"]
)


def run_apart(config: RunConfig, folder: Path, overrides: tuple[str, ...]) -> None:
    """What the child does: a run without its figures, on as many threads as here."""
    torch.set_num_threads(1)
    homeostat.report.html.write_report = lambda folder: folder
    run(config, folder, Console(), overrides)


# Ten moments: the trainer, and after how many updates the last hand falls.
MOMENTS = [
    *(("ppo", done) for done in (0, 1, 2, 3)),
    *(("grpo", done) for done in (0, 1, 2)),
    *(("ppo_lora_pid", done) for done in (1, 2, 3)),
    *(("ppo_bfloat16", done) for done in (0, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "done"), MOMENTS)
def test_sigkill_at_random_moments_changes_nothing_in_process(
    trainer: str,
    done: int,
    whole_of: Callable[[str], Path],
    composed: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    """Forked from a server that has the imports; the command line has the same, marked slow."""
    expected, folder = whole_of(trainer), tmp_path / "run"
    overrides = TRAINERS[trainer]
    config = composed(*overrides)
    process = CHILDREN.Process(target=run_apart, args=(config, folder, overrides))
    process.start()
    seen = folder / ("metrics.jsonl" if done else "set_points.json")
    while process.is_alive() and not (seen.exists() and seen.read_bytes().count(b"\n") >= done):
        time.sleep(0.001)
    time.sleep(random.Random(f"{trainer} {done}").uniform(0, 0.3))
    process.kill()
    process.join()
    # After the last update there is little left, which a fast machine may have finished.
    assert process.exitcode == -signal.SIGKILL or done == 3
    resume(config, folder, overrides)
    assert_same_run(folder, expected)


@pytest.fixture(scope="module")
def killed(composed: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the trainer with the most state that was killed after its second checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    overrides = TRAINERS["ppo_lora_pid"]
    with pytest.MonkeyPatch.context() as patch:
        kill_on(patch, "homeostat.runs.checkpoint.Checkpoints.save", 2, after=True)
        with pytest.raises(Killed):
            run(composed(*overrides), folder, Console(), overrides)
    return folder


def spoil(part: str, state: dict[str, Any]) -> None:
    """Change one part of a checkpoint's state."""
    trainer, generators = state["trainer"], state["random"]
    if part == "optimizer":
        for moments in trainer["optimizer"]["state"].values():
            moments["exp_avg"].zero_()
    elif part == "critic":
        trainer["critic"]["bias"] += 1
    elif part == "critic adapter":
        for weight in trainer["critic_adapter"]:
            weight += 0.1
    elif part == "price of KL":
        trainer["kl"]["coef"] += 0.5
    elif part == "done":
        trainer["done"] = 1
    elif part == "torch":
        generators["torch"] = torch.Generator().manual_seed(1).get_state()
    elif part == "numpy":
        kind, keys, *rest = generators["numpy"]
        generators["numpy"] = (kind, keys[::-1], *rest)


PARTS = ["optimizer", "critic", "critic adapter", "price of KL", "done", "torch", "numpy"]


@pytest.mark.parametrize("part", ["nothing", *PARTS])
def test_every_part_of_the_state_is_restored(
    part: str,
    killed: Path,
    whole_of: Callable[[str], Path],
    composed: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    """A checkpoint with one part changed gives another run, so that part was in use."""
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    path = folder / "checkpoint" / "step_000002" / "state.pt"
    state = torch.load(path, weights_only=True)
    spoil(part, state)
    torch.save(state, path)
    overrides = TRAINERS["ppo_lora_pid"]
    resume(composed(*overrides), folder, overrides)
    expected = whole_of("ppo_lora_pid")
    same = (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert same == (part == "nothing")


def test_a_change_that_does_not_fit_leaves_the_run_as_it_was(
    killed: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    before = {p: p.read_bytes() for p in folder.rglob("*.*") if p.suffix in (".yaml", ".jsonl")}
    changed = composed(*TRAINERS["ppo_lora_pid"], "lora.rank=2")
    with pytest.raises(HomeostatError, match=r"lora\.\*"):
        resume(replace(changed, resume_override=True), folder)
    assert {p: p.read_bytes() for p in before} == before


def test_a_finished_run_can_be_prolonged(
    whole: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    resume(replace(composed(*IN_PROCESS, "trainer.max_steps=4"), resume_override=True), folder)
    found, before = (rows(f / "metrics.jsonl") for f in (folder, whole))
    assert found[:3] == before
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert not changed_values(composed(*IN_PROCESS, "trainer.max_steps=4"), folder)


def test_a_run_is_not_started_over_another_and_not_twice_at_once(
    whole: Path, composed: Callable[..., RunConfig]
) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(HomeostatError, match=r"already holds a run.*homeostat resume="):
        run(composed(*IN_PROCESS), whole, Console(), IN_PROCESS)
    from homeostat.files import alone_in

    with alone_in(whole), pytest.raises(HomeostatError, match="still going on"):
        resume(composed(*IN_PROCESS), whole)
    assert (whole / "metrics.jsonl").read_bytes() == before


# --- the config of a resumed run ----------------------------------------------------------------


def composed_again(*arguments: str) -> RunConfig:
    """What the command line makes of a config that a run has kept."""
    register()
    asked = asked_run(arguments)
    assert asked is not None
    typed = resumed_arguments(arguments, *asked)
    start = resumed_config(CONF / "config.yaml", *asked, typed)
    ConfigStore.instance().store("resumed", start)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = as_object(compose("resumed", overrides=typed))
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("trainer", ["none", "ppo", "grpo", "rloo", "dpo", "steer_heal"])
def test_a_run_goes_on_with_the_config_that_it_has_kept(
    trainer: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """And not with that of the options that it names, which may be others by now, or gone."""
    config = composed(*SMOKE, f"trainer={trainer}", "persona=love", "bot=bored", "seed=3")
    save_config(config, ["model=of_another_name", "+a.key=that_was"], tmp_path)
    found = composed_again(f"resume={tmp_path}")
    assert changed_values(found, tmp_path) == {}
    assert found == replace(config, resume=str(tmp_path))


def test_what_is_typed_beside_a_resume_comes_on_top(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    save_config(composed(*SMOKE, "reward=full"), [*SMOKE, "reward=full"], tmp_path)
    asked = f"resume={tmp_path}"
    assert changed_values(composed_again(asked, "trainer.lr=0.5"), tmp_path) == {
        "trainer.lr": (0.001, 0.5)
    }
    # What the run was started with says nothing new; another option takes the place of its group.
    assert changed_values(composed_again(*SMOKE, asked, "reward=full"), tmp_path) == {}
    options = ("signals=[intrinsic]", "reward=intrinsic_only", "bot=bored")
    other, chosen = composed_again(asked, *options), composed(*options)
    assert other.signals.affect is None
    assert (other.reward, other.bot) == (chosen.reward, chosen.bot)
    larger = composed_again(asked, "scale=gpu12"), composed("scale=gpu12")
    assert larger[0].trainer.max_steps == larger[1].trainer.max_steps


@pytest.mark.parametrize("users", ["frustrated", "mixed"])
def test_a_run_goes_on_with_the_users_that_it_is_tested_on(
    users: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*SMOKE, f"eval.bots={users}")
    save_config(config, [*SMOKE, f"bot@eval.bots={users}"], tmp_path)
    asked = f"resume={tmp_path}"
    assert composed_again(asked) == replace(config, resume=str(tmp_path))
    for more, name in (("bot@eval.bots=bored", "bored"), ("eval.bots=null", "mixed")):
        other = composed_again(asked, more)
        assert other.held_out_bot.name == name
        with pytest.raises(HomeostatError, match=r"eval.bots.* was .* and is .*resume_override"):
            refuse_changes(other, tmp_path)


def test_a_mistyped_key_beside_a_resume_gets_the_keys(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    save_config(composed(*SMOKE), SMOKE, tmp_path)
    with pytest.raises(HydraException) as refused:
        composed_again(f"resume={tmp_path}", "memory.limit=3")
    said = "memory.limit is no key of this run; the keys of memory are limit_gb."
    assert explain(refused.value) == said


@pytest.mark.parametrize("text", ["${now:%Y} {persona}", r"\${x} {persona}", "{persona} ${"])
def test_a_text_with_a_dollar_sign_stays_that_text(
    text: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*SMOKE, "persona=love")
    assert config.persona is not None
    config = replace(config, persona=replace(config.persona, prompt=text))
    save_config(config, SMOKE, tmp_path)
    assert composed_again(f"resume={tmp_path}").persona == config.persona


@pytest.mark.parametrize(
    "name", ["a=b, c", "reward=full,seed=0", "it's", 'say "x"', "back\\slash\\", "fülle", "(1)"]
)
def test_the_command_that_a_run_prints_works_as_printed(
    name: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    save_config(composed(*SMOKE), SMOKE, folder)
    command, *typed = shlex.split(resume_command(folder))
    assert command == "homeostat"
    assert composed_again(*typed).resume == str(folder)


def test_a_folder_is_taken_as_it_is_typed(
    composed: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link, by a relative path, or with the signs that Hydra's grammar keeps for itself."""
    folder = tmp_path / "reward=full,seed=0"
    folder.mkdir()
    save_config(composed(*SMOKE), SMOKE, folder)
    (tmp_path / "last").symlink_to(folder.name)
    monkeypatch.chdir(tmp_path)
    for typed in (folder, folder.name, "last", "./last/"):
        assert asked_run([f"resume={typed}"]) == ("resume", folder)
    assert asked_run(["seed=1", "resume=null"]) is None


def test_relative_paths_of_a_run_go_from_where_it_was_started(tmp_path: Path) -> None:
    assert started_in(tmp_path) is None
    for place, found in ((tmp_path, tmp_path), (tmp_path / "gone", None)):
        (tmp_path / "environment.json").write_text(json.dumps({"cwd": str(place)}))
        assert started_in(tmp_path) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resume=nowhere"], "there is no such folder"),
        (["resume=."], r"config\.yaml is missing"),
        (["-m", "resume=a,b"], "no sweep"),
        (["resume=a,b"], "one run folder"),
        (["export=nowhere"], "export=.*nowhere: there is no such folder"),
        (["-m", "export=a,b"], "export takes one run folder, and no sweep"),
        (["resume=a b=c"], r"resume=a b=c cannot be read; .* 'resume=\"a b=c\"'\."),
        (["resume=.", "hydra.run.dir=x"], "keeps its own folder and experiment; leave hydra.run"),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_named(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HomeostatError, match=said):
        asked_run(arguments)


def test_a_changed_config_is_refused_by_key_unless_it_is_asked_for(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    save_config(composed(*SMOKE), SMOKE, tmp_path)
    assert not refuse_changes(composed(*SMOKE, f"resume={tmp_path}"), tmp_path)
    changed = composed(*SMOKE, "trainer.lr=0.25", "signals=[intrinsic]", "reward=intrinsic_only")
    assert changed_values(changed, tmp_path)["trainer.lr"] == (0.001, 0.25)
    with pytest.raises(HomeostatError) as refused:
        refuse_changes(changed, tmp_path)
    for part in ("trainer.lr was 0.001 and is 0.25", "signals.affect", "resume_override=true"):
        assert part in str(refused.value)
    assert refuse_changes(replace(changed, resume_override=True), tmp_path)


def test_a_run_is_finished_when_its_report_is_timed(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    for status, stages, finished in (
        ("finished", {"report": 1.0}, True),
        ("finished", {}, False),
        ("interrupted", {"report": 1.0}, False),
    ):
        (tmp_path / "summary.json").write_text(json.dumps({"status": status, "time_s": stages}))
        assert is_finished(tmp_path) == finished


@pytest.mark.parametrize(
    ("name", "read", "said"),
    [
        ("summary.json", is_finished, "homeostat resume=<that run> writes both again"),
        ("overrides.yaml", kept_overrides, r"put \[\] into it"),
        ("config.yaml", read_config, "put a whole copy in its place"),
        ("environment.json", started_in, "delete it"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    name: str,
    read: Callable[[Path], Any],
    said: str,
    composed: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    save_config(composed(*SMOKE), SMOKE, tmp_path)
    (tmp_path / name).write_text('{"a": [')
    with pytest.raises(HomeostatError, match=f"{name} is damaged and cannot be read .*{said}"):
        read(tmp_path)


def test_a_damaged_adapter_of_a_checkpoint_is_named(
    killed: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    path = folder / "checkpoint" / "step_000002" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    overrides = TRAINERS["ppo_lora_pid"]
    with pytest.raises(HomeostatError, match=r"step_000002/adapter/.* is damaged .*; delete the"):
        resume(composed(*overrides), folder, overrides)


# --- the command line ---------------------------------------------------------------------------


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    source = {"PYTHONPATH": f"{Path(homeostat.__file__).parents[1]}{os.pathsep}{cwd / 'terms'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "homeostat.cli", *arguments],
        cwd=cwd,
        env={**os.environ, **quiet, **source},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


AGAIN = ("resume=run", "allow_targets=[noisy.noise]")  # a run folder may not name code by itself


def noisy(cwd: Path) -> tuple[str, ...]:
    """The command of a run whose reward draws from every generator."""
    (cwd / "terms").mkdir()
    (cwd / "terms" / "noisy.py").write_text(NOISE)
    return (*SMOKE, "hydra.run.dir=run", "+reward.terms.noise={_target_: noisy.noise}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Return once a file has that many lines, or the process has ended."""
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)


def test_the_command_line_refuses_a_change_and_knows_a_finished_run(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(composed(*SMOKE), SMOKE, folder)
    summary = {"status": "finished", "time_s": {"report": 1.0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    asked = [start("resume=run", *more, cwd=tmp_path) for more in ((), ("seed=1", "bot=bored"))]
    (code, said), (refused, why) = map(finish, asked)
    assert (code, refused) == (0, 1), said + why
    assert "is finished" in said
    assert "seed was 0 and is 1" in why
    assert "bot.name was mixed and is bored" in why
    assert "Traceback" not in why
    assert [p.name for p in tmp_path.iterdir()] == ["run"], "Hydra made a folder of its own"


@pytest.fixture(scope="module")
def whole_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of the command line, which fills the cache."""
    cwd = tmp_path_factory.mktemp("whole_process")
    code, output = finish(start(*noisy(cwd), "tracker=none", cwd=cwd))
    assert code == 0, output
    return cwd / "run"


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_sigkill_at_a_random_moment_changes_nothing(
    moment: int, whole_process: Path, tmp_path: Path
) -> None:
    """Once in every other run, twice in the others; from the first evaluation to the last."""
    draw = random.Random(moment)
    steps = sorted(draw.randrange(STEPS + 1) for _ in range(1 + moment % 2))
    command = [*noisy(tmp_path), "tracker=none"]
    for done in steps:
        process = start(*command, cwd=tmp_path)
        if done:
            wait_for(tmp_path / "run" / "metrics.jsonl", done, process)
        else:
            wait_for(tmp_path / "run" / "set_points.json", 1, process)
        time.sleep(draw.uniform(0, 0.8))
        process.kill()
        code, output = finish(process)
        assert code == -signal.SIGKILL, output
        command = list(AGAIN)
    code, output = finish(start(*command, cwd=tmp_path))
    assert code == 0, output
    assert_same_run(tmp_path / "run", whole_process)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "terms"}


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_does(whole_process: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*noisy(tmp_path), "tracker=wandb", cwd=tmp_path)
    wait_for(folder / "metrics.jsonl", 1, process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    said = f"continue with homeostat resume={folder} '{AGAIN[1]}'"
    assert output.rstrip().endswith(said)
    code, output = finish(start(*AGAIN, cwd=tmp_path))
    assert code == 0, output
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1, "it is written anew"
    for name in ("metrics.jsonl", "episodes.jsonl", "evals/homeostasis.jsonl"):
        assert (folder / name).read_bytes() == (whole_process / name).read_bytes(), name
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    # The report names the folder, and pytest names the folder after this test.
    assert "interrupted" not in (folder / "report.html").read_text().replace(str(folder), "")
