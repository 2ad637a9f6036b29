"""`homeostat list`, `show` and `check`: what they read, and that they need nothing heavy."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from homeostat.cli import _look_at
from homeostat.config.resume import save_config
from homeostat.config.run import RunConfig
from homeostat.config.sweep import NOT_STARTED, list_jobs, note_job
from homeostat.files import alone_in
from homeostat.report import look, machine

Compose = Callable[..., RunConfig]
TINY = ("model=tiny_random", "scale=smoke")
VALENCE = {"before": -1.0, "after": -0.5, "diff": 0.5, "ci95": [0.25, 0.75], "n": 8}
UPDATE = {"reward/valence": -1.0, "reward/total": -1.0, "policy/kl_nats_per_token": 0.0}


def shown(what: Callable[..., None], *given: Any, width: int = 160) -> str:
    out = io.StringIO()
    what(*given, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture
def folder(composed: Compose, tmp_path: Path) -> Path:
    """A folder that a run lies in which has ended, and one that was killed."""
    for name in ("ended", "killed"):
        (tmp_path / name).mkdir()
        save_config(composed(*TINY, "seed=7"), TINY, tmp_path / name)
        rows = [UPDATE, UPDATE | {"reward/valence": -0.25, "reward/total": -9.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    summary = {
        **{"status": "finished", "trainer": "ppo", "learns": True, "bot": "mixed", "steps": 2},
        **{"model": "tiny_random", "seed": 7},
        **{"wall_s": 65.0, "eval": {"valence": VALENCE}},
    }
    (tmp_path / "ended" / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_every_run_has_a_line_with_what_it_found(folder: Path) -> None:
    lines = shown(look.list_runs, folder, width=200).splitlines()
    (ended,) = (line for line in lines if "│ ended" in line)
    for part in ("finished", "ppo", "tiny_random", "7", "-1.00 → -0.50", "+0.50"):
        assert part in ended
    (killed,) = (line for line in lines if "│ killed" in line)
    assert "stopped before it ended" in killed


def test_a_run_that_cannot_be_read_does_not_hide_the_others(folder: Path) -> None:
    (folder / "killed" / "config.yaml").write_text("trainer: [")
    (folder / "ended" / "summary.json").write_text('{"status": "finished"}')
    lines = shown(look.list_runs, folder, width=200).splitlines()
    assert sum("cannot be read" in line for line in lines) == 2
    assert any("it holds values that this version of" in line for line in lines)


def test_a_run_is_shown_with_its_course_and_figures(folder: Path) -> None:
    text = shown(look.show, folder / "ended")
    assert "finished: ppo on tiny_random, seed 7, 2 of 2 steps, 1:05" in text
    (course,) = (line for line in text.splitlines() if "reward/valence" in line)
    assert course.split() == ["reward/valence", "-1.000", "▁█", "-0.250"]
    assert "reward/total" not in text, "it is no other number than valence where there is one"
    assert "+0.500" in text
    assert "[+0.250, +0.750]" in text


def test_a_run_at_work_is_told_from_one_that_was_killed(folder: Path) -> None:
    assert look.status_of(folder / "killed") == "stopped before it ended"
    with alone_in(folder / "killed"):
        assert look.status_of(folder / "killed") == "at work"
        assert "at work: ppo" in shown(look.show, folder / "killed")


def test_stages_of_steering_are_shown(folder: Path) -> None:
    moved = {"trait_nats": {"diff": 0.125, "ci95": [0.1, 0.2]}}
    about = {"coherence": 0.75, "median_perplexity": 5.5, "kl_nats_per_token": None}
    rows = [
        {"round": 0, "stage": "base", **about},
        {"round": 2, "stage": "healed", "moved": moved, **about},
    ]
    (folder / "killed" / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = shown(look.show, folder / "killed")
    assert "2 of 2 rounds" in text
    (healed,) = (line for line in text.splitlines() if "healed 2" in line)
    for part in ("+0.125", "[+0.100, +0.200]", "0.750", "5.500", "—"):
        assert part in healed


def test_a_sweep_is_shown_as_its_jobs(folder: Path) -> None:
    list_jobs(folder, [["seed=7"], ["seed=8"], ["seed=9"]], ["-m", "seed=7,8,9"])
    note_job(folder, 0, ["seed=7"], "finished", folder / "ended")
    note_job(folder, 1, ["seed=8"], "running", folder / "killed")
    lines = shown(look.show, folder).splitlines()
    for seed, says in ((7, "-1.00 → -0.50"), (8, "stopped before it ended"), (9, NOT_STARTED)):
        (line,) = (one for one in lines if f"seed={seed}" in one)
        assert says in line
    assert lines[-1].startswith("1 of 3 jobs are done")
    (folder / "killed").rename(folder / "elsewhere")
    assert "its folder is gone" in shown(look.show, folder)


def test_names_cannot_steer_the_terminal(folder: Path) -> None:
    (folder / "ended").rename(folder / "a\x1b[31m[red]b")
    text = shown(look.list_runs, folder)
    assert "\x1b" not in text
    assert "a␛[31m[red]b" in text


def test_a_course_is_scaled_averaged_and_flat_where_nothing_moves() -> None:
    assert look.course([0.0, 7.0, 3.5]) == "▁█▅"
    assert look.course([2.0, 2.0]) == "▁▁"
    assert look.course([float(i // 10) for i in range(80)], width=8) == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("show",), "give one run folder"),
        (("show", "nowhere"), "nowhere: there is no such folder"),
        (("show", "."), "no run folder and no sweep"),
        (("list", "."), "holds no run"),
        (("list", "a", "b"), "give one folder that runs lie in"),
        (("check", "x"), "give nothing behind it"),
        (("show", "odd"), "odd holds values that this version of homeostat does not write (Key"),
    ],
)
def test_what_cannot_be_looked_at_is_said(
    asked: tuple[str, ...],
    says: str,
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "odd" in asked:
        (tmp_path / "odd").mkdir()
        save_config(composed(*TINY), TINY, tmp_path / "odd")
        summary = {"status": "finished", "trainer": "ppo", "wall_s": 1.0}
        (tmp_path / "odd" / "summary.json").write_text(json.dumps(summary))
    assert _look_at(*asked) == 1
    assert says in capsys.readouterr().err


def test_the_machine_is_read_from_what_it_says() -> None:
    assert machine.native_bfloat16("flags : fpu avx512_bf16 amx_bf16") == [
        "amx_bf16",
        "avx512_bf16",
    ]
    assert machine.native_bfloat16("flags : avx2") == []
    listed = "NVIDIA GeForce RTX 3060, 12288\nNVIDIA T4, 15360\n"
    gpus = machine.gpus_of(listed)
    assert gpus == [("NVIDIA GeForce RTX 3060", 12288), ("NVIDIA T4", 15360)]
    assert machine.gpus_of("Failed to initialize NVML: Driver mismatch\n") == []
    assert "scale=gpu12" in machine.preset(gpus, 16.0)
    assert "scale=cpu" in machine.preset([("Quadro", 4096)], 16.0)
    assert machine.preset([], 2.0).startswith("homeostat scale=smoke")
    assert machine.is_there("json")
    assert not machine.is_there("no_such_package.module")


def test_models_of_both_caches_are_at_hand(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    assert machine.models_at_hand() == []
    (cache / "models" / "smollm2_135m-b179c9523d0e").mkdir(parents=True)
    (cache / "models" / "smollm2_135m-b179c9523d0e.lock").touch()
    (cache / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct").mkdir(parents=True)
    assert machine.models_at_hand() == ["smollm2_135m", "Qwen/Qwen2.5-0.5B-Instruct"]


def test_looking_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from homeostat.cli import _look_at\n"
        f"codes = [_look_at('list', {str(folder)!r}), _look_at('show', {str(folder / 'ended')!r}),"
        " _look_at('check')]\n"
        "heavy = sorted({'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules))\n"
        "print('codes', codes, 'heavy', heavy)"
    )
    environment = os.environ | {"HOMEOSTAT_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "codes [0, 0, 0] heavy []"
