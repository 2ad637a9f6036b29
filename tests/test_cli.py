"""The real console script, on the tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from configs import tiny_config
from hydra import compose, initialize_config_dir
from peft import PeftModel
from safetensors.torch import load_file

from homeostat.cli import at_home, explain, flags_first
from homeostat.config.checks import as_object
from homeostat.config.register import CONF, register
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS, INTRINSIC_SIGNALS
from homeostat.models.tiny import load_tiny

pytestmark = pytest.mark.slow  # whole processes of the command line

SCRIPT = Path(sys.executable).with_name("homeostat")
SMOKE = ("model=tiny_random", "scale=smoke", "tracker=none")
STRICT = (*SMOKE, "trainer=none", "signals.affect.require=trusted")
SIGNAL_FIGURES = ("set_points", "headroom", "probe_controls", "probe_layers", "probe_reliability")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for this module: the probes are fitted once."""
    return tmp_path_factory.mktemp("cache")


def homeostat(
    *arguments: str, cache: Path, cwd: Path, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        cwd=cwd,
        env=_environment(cache) | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _environment(cache: Path) -> dict[str, str]:
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "HOMEOSTAT_CACHE": str(cache), **quiet}


def summary(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").iterdir()}


def test_smoke_run_leaves_a_whole_run_folder(shared_cache: Path, tmp_path: Path) -> None:
    done = homeostat(*SMOKE[:2], "hydra.run.dir=run", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    found = summary(folder)
    assert found["status"] == "finished"
    assert found["steps"] == 2
    for name in ("trainer", "model", "seed", "wall_s", "peak_rss_mb"):
        assert found[name] is not None
    assert set(found["eval"]["valence"]) == {"before", "after", "diff", "ci95", "n"}
    assert found["eval"]["valence"]["n"] == 3
    assert sum(found["time_share"].values()) == pytest.approx(1)
    steps = rows(folder / "metrics.jsonl")
    assert [row["step"] for row in steps] == [1, 2]
    assert all(value is not None for row in steps for value in row.values())
    assert len(rows(folder / "episodes.jsonl")) == 2 * 4
    assert len(rows(folder / "evals" / "homeostasis.jsonl")) == 2 * 3
    timing = rows(folder / "timing.jsonl")
    assert [row["step"] for row in timing] == [1, 2]
    assert timing[1]["time/update_s"] > timing[0]["time/update_s"] > 0
    written = ("config.yaml", "overrides.yaml", "environment.json", "set_points.json")
    for name in (*written, "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert figures(folder) == {"valence", "effects", "signals", "claims", *SIGNAL_FIGURES}
    usable = [name for name, found in found["probe_verdict"].items() if found != "unusable"]
    # A usable probe may still read too little of what a reply changed, and then it is said.
    said = {name for name in usable if f"{name} is left out of the reward: r = " in done.stdout}
    assert sorted(found["rewarded_affects"]) == sorted(set(usable) - said)
    assert set(found["staleness"]) == set(AFFECTS)
    assert found["failures"] is None
    assert list(folder.glob("wandb/offline-run-*"))
    assert not list(folder.glob(".*")), "a temporary file was left behind"
    import torch

    base = load_tiny(tiny_config(), torch.device("cpu"), torch.float32)
    PeftModel.from_pretrained(base.model, str(folder / "adapters"))
    weights = load_file(folder / "adapters" / "adapter_model.safetensors")
    assert any(w.abs().sum() > 0 for name, w in weights.items() if "lora_B" in name)


@pytest.fixture(scope="module")
def validation(
    shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run without training that asks for more than any probe of a random model can show."""
    here = tmp_path_factory.mktemp("validation")
    return here, homeostat(*STRICT, "hydra.run.dir=run", cache=shared_cache, cwd=here)


def test_run_without_training_validates_the_signals(
    validation: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = validation[0] / "run", validation[1]
    assert done.returncode == 0, done.stderr
    found = summary(folder)
    assert (found["status"], found["steps"], found["eval"]) == ("finished", 0, {})
    assert set(found["probe_verdict"]) == set(AFFECTS)
    assert set(found["probe_verdict"].values()) <= {"weak", "unusable"}
    failures = rows(folder / "evals" / "failures.jsonl")
    assert list(found["failures"]) == list(dict.fromkeys(row["failure"] for row in failures))
    assert len(failures) == 10 * (len(INTRINSIC_SIGNALS) + 1)
    assert all(row["n"] == row["n_ordinary"] == 4 for row in failures)
    assert {"greedy_loop", "noise_2", "irrelevant", "empty"} <= set(found["failures"])
    report = json.loads((folder / "probes" / "report.json").read_text())
    assert {name: report[name]["verdict"] for name in report} == found["probe_verdict"]
    keys = ("layer", "pooling", "auroc", "ci95", "controls", "transfer", "reason")
    for probe in report.values():
        assert [key for key in keys if probe[key] is None] == []
        assert probe["heldout_auroc"] is None
    assert figures(folder) == {"failures", *SIGNAL_FIGURES}
    page = (folder / "report.html").read_text()
    assert "Affect probes" in page
    assert "What the intrinsic signals see" in page
    for name in ("metrics.jsonl", "adapters"):
        assert not (folder / name).exists()
    for title in ("Affect probes on unseen authors", "Failures against ordinary replies"):
        assert title in done.stdout


def test_affects_that_are_not_trusted_are_left_out_and_named(
    validation: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = validation[0] / "run", validation[1]
    found = summary(folder)
    assert found["rewarded_affects"] == []
    for affect, verdict in found["probe_verdict"].items():
        assert f"{affect} is left out of the reward: it is {verdict} (" in done.stdout
    points = json.loads((folder / "set_points.json").read_text())
    assert set(points["set_points"]) == set(INTRINSIC_SIGNALS) - {
        "self_certainty",
        "self_perplexity",
    }
    assert set(points["signals"]) == {*INTRINSIC_SIGNALS, *AFFECTS}


def test_second_run_measures_nothing_again(
    validation: tuple[Path, subprocess.CompletedProcess[str]], shared_cache: Path, tmp_path: Path
) -> None:
    def kept() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in shared_cache.rglob("*") if p.is_file()}

    before = kept()
    done = homeostat(*STRICT, "hydra.run.dir=run", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kept() == before
    first, second = validation[0] / "run", tmp_path / "run"
    assert "failures" in summary(first)["time_s"]
    assert set(summary(second)["time_s"]) == {"load", "probes", "suite", "report"}
    assert all(own["speed"]["base"]["cached"] for own in summary(second)["suite"].values())
    assert "failures: replies" not in done.stdout
    for name in ("set_points.json", "evals/failures.jsonl", "probes/report.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    for key in ("failures", "perception", "probe_verdict", "probe_auroc"):
        assert summary(second)[key] == summary(first)[key]


@pytest.mark.usefixtures("validation")
def test_reward_of_which_nothing_is_left_is_refused(shared_cache: Path, tmp_path: Path) -> None:
    strict = (*SMOKE, "signals.affect.require=trusted", "reward=relational_only")
    done = homeostat(*strict, "hydra.run.dir=run", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "homeostat: signals.affect.require=trusted leaves no signal to reward; lower it, or add "
        "intrinsic signals with reward=full."
    ]
    assert summary(tmp_path / "run")["status"].startswith("failed: signals.affect.require=trusted")
    assert (tmp_path / "run" / "probes" / "report.json").is_file()


def test_a_sweep_goes_on_when_one_job_fails(shared_cache: Path, tmp_path: Path) -> None:
    done = homeostat(
        "-m",
        *SMOKE,
        "rollout.max_new_tokens=6,3000",
        "hydra.sweep.dir=sweep",
        cache=shared_cache,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "does not fit into the model's context" in done.stderr
    assert summary(tmp_path / "sweep" / "0")["status"] == "finished"
    failed = summary(tmp_path / "sweep" / "1")
    assert failed["status"].startswith("failed: a conversation of ")
    # How far it comes before a reply is too long hangs on the random model's rounding.
    assert all(estimate["after"] is None for estimate in failed["eval"].values())


def test_interrupt_leaves_a_labelled_run_folder(shared_cache: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(SCRIPT), *SMOKE, "trainer.max_steps=100000", "hydra.run.dir=run"],
        cwd=tmp_path,
        env=_environment(shared_cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    limit = time.monotonic() + 200
    while not metrics.exists() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    found = summary(tmp_path / "run")
    assert found["status"] == "interrupted"
    assert found["steps"] == len(metrics.read_text().splitlines()) >= 1
    assert found["eval"]["valence"]["after"] is None
    assert "interrupted" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "adapters" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.lrr=1", ("trainer.lrr", "keys of trainer", "batch_size")),
        ("+trainer.lrr=1", ("trainer.lrr", "batch_size")),
        ("nonsense=1", ("nonsense", "seed")),
        ("trainer.lr=fast", ("trainer.lr", "fast", "Float")),
        ("trainer=magic", ("magic", "ppo")),
        ("trainer.lr=-1", ("trainer.lr=-1", "above 0")),
        ("reward.set_points.entropy.tolerance=-1", ("tolerance=-1", "above 0")),
        ("bot.bots=null", ("bots",)),
        ("device=abacus", ("device=abacus", "cpu", "cuda")),
        ("hydra.run.dir=/dev/null/x", ("/dev/null", "hydra.run.dir")),
        ("signals.affect.corpus=nowhere.jsonl", ("nowhere.jsonl", "JSONL")),
        ("reward.set_points.joy.weight=1", ("joy", "sentiment")),
    ],
)
def test_bad_input_gets_a_sentence_and_no_traceback(
    override: str, said: tuple[str, ...], shared_cache: Path, tmp_path: Path
) -> None:
    done = homeostat(*SMOKE, "hydra.run.dir=run", override, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = next(line for line in done.stderr.splitlines() if line.startswith("homeostat: "))
    for part in said:
        assert part in message


def test_a_flag_may_stand_anywhere() -> None:
    typed = ["seed=0,1", "-m", "--config-dir", "a=b", "lora.rank=2"]
    assert flags_first(typed) == ["-m", "--config-dir", "a=b", "seed=0,1", "lora.rank=2"]


def test_a_path_may_begin_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home("model.path=~/models/mine") == "model.path=/home/me/models/mine"
    assert at_home("resume=~/my runs/a") == 'resume="/home/me/my runs/a"'
    for typed in ("~scale", "model.path=a~/b", "seed=1"):
        assert at_home(typed) == typed


def test_the_shell_completes_groups_options_and_keys(shared_cache: Path, tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        typed = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        done = homeostat("-sc", "query=bash", cache=shared_cache, cwd=tmp_path, **typed)
        return done.stdout.split()

    assert completed("homeostat trainer=p") == ["trainer=ppo"]
    assert completed("homeostat trainer=grpo trainer.group") == ["trainer.group_size="]
    assert "experiment=earn" in completed("homeostat experiment=")
    installed = homeostat("-sc", "install=bash", cache=shared_cache, cwd=tmp_path)
    assert installed.stdout.rstrip().endswith("-F hydra_bash_completion homeostat")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward=fülle", "reward=fülle cannot be read; .*: 'reward=\"fülle\"'"),
        ('trainer.lr="1e-4', "cannot be read; .*: 'trainer.lr=\"1e-4\"'"),
        ("train", "train is no option; give key=value"),
        ("reward.set_points.entropy.tolerance=0", "reward.set_points.entropy: tolerance=0 of"),
        ("+reward.set_points.joy={weight: 1}", "reward.set_points.joy cannot be added"),
        ("eval.bootstrap_samples=100000000000", "eval.bootstrap_samples=1.* at most 1000000"),
        ("rollout.max_new_tokens=1000000000", "rollout.max_new_tokens=1.* at most 100000"),
        ("bot=[mixed,magic]", "^magic is no option of bot; choose one of bored, "),
        ("trainer={rate: 1}", r"^trainer\.rate is no key of this run; the keys of trainer are"),
        ("~seed", "^no run can do without 'seed'; give a value"),
    ],
)
def test_a_wrong_override_is_explained_in_a_sentence(override: str, said: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as found:  # noqa: PT011
        as_object(compose("config", overrides=[override]))
    assert re.search(said, explain(found.value))


def test_a_key_below_one_that_is_null_is_explained() -> None:
    typed = ["signals=[intrinsic]", "signals.affect.require=any"]
    register()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(AssertionError) as found,
    ):
        compose("config", overrides=typed)
    assert "signals.affect where signals has no affect" in explain(found.value)


def test_resume_export_and_compare_exclude_each_other(composed: Callable[..., RunConfig]) -> None:
    with pytest.raises(ValueError, match="resume and export exclude each other; choose one"):
        composed("resume=a", "export=a")


def test_traceback_on_request(shared_cache: Path, tmp_path: Path) -> None:
    done = homeostat(
        *SMOKE, "trainer.lr=-1", cache=shared_cache, cwd=tmp_path, HYDRA_FULL_ERROR="1"
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_help_lists_every_option_without_composing(shared_cache: Path, tmp_path: Path) -> None:
    done = homeostat("--help", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0
    for name in ("smollm2_135m", "relational_only", "topic_shift", "gpu12", "learn_cpu"):
        assert name in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named() -> None:
    """A real ENOSPC, and the form in which safetensors reports one."""
    with pytest.raises(OSError, match="No space left") as full, open("/dev/full", "w") as stream:
        stream.write("x" * 100_000)
    for error in (full.value, RuntimeError("I/O error: No space left on device (os error 28)")):
        message = explain(error)
        assert "No space left on device" in message
        assert "hydra.run.dir" in message
