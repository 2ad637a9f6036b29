"""What a run folder says about the run as a whole: its config, its environment, its summary."""

from __future__ import annotations

import json
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import homeostat
from homeostat.config.resume import checkpoints_in, resume_command, save_config
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.files import remove_leftovers, write_text
from homeostat.models.placement import Placement
from homeostat.report.metrics import finite
from homeostat.runs.context import Wing
from homeostat.timing import Stopwatch

PACKAGES = ("torch", "transformers", "peft", "trl", "hydra-core", "numpy", "scikit-learn", "wandb")
# What a wing may know; each has its place in summary.json, known or not.
UNKNOWN: Mapping[str, Any] = {
    "probe_auroc": {},
    "probe_verdict": {},
    "rewarded_affects": (),
    "perception": None,
    "staleness": None,
    "failures": None,
    "eval": {},
}


@dataclass
class Outcome:
    """What has become of a run so far."""

    status: str = "running"
    steps: int = 0
    planned_bytes: int | None = None
    wing: Wing | None = None
    suite: Mapping[str, Any] = field(default_factory=dict)


def prepare_folder(
    config: RunConfig, folder: Path, overrides: Sequence[str], placement: Placement
) -> None:
    """Write what the run is: config.yaml, overrides.yaml and environment.json.

    Raises:
        HomeostatError: The folder holds the updates of another run.
    """
    if config.resume is not None:
        remove_leftovers(folder)
    elif (folder / "metrics.jsonl").exists():
        raise HomeostatError(
            f"{folder} already holds a run; choose another folder, or continue that run with "
            f"{resume_command(folder)}."
        )
    # Changed values that its checkpoint turns out not to fit must not become the run's own.
    if not checkpoints_in(folder / "checkpoint"):
        save_config(config, overrides, folder)
    environment = {
        "homeostat": homeostat.__version__,
        "git_revision": _git_revision(),
        "command": sys.argv[1:],
        "cwd": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        **placement.record(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    write_text(folder / "environment.json", json.dumps(environment, indent=2))


def save_summary(
    config: RunConfig, outcome: Outcome, watch: Stopwatch, folder: Path
) -> dict[str, Any]:
    """Write summary.json; returns what it holds."""
    summary = summarise(config, outcome, watch)
    write_text(folder / "summary.json", json.dumps(finite(summary), indent=2))
    return summary


def summarise(config: RunConfig, outcome: Outcome, watch: Stopwatch) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "status": outcome.status,
        "trainer": config.trainer.name,
        "learns": config.trainer.learns,
        "model": config.model.name,
        "bot": config.bot.name,
        "held_out_bot": config.held_out_bot.name,
        "prompt": config.eval.prompted,
        "seed": config.seed,
        "steps": outcome.steps,
        "max_steps": config.trainer.max_steps,
        "wall_s": watch.wall_s,
        "peak_rss_mb": peak_rss_mb(),
        "peak_cuda_mb": peak_cuda_mb(),
        "planned_mb": None if outcome.planned_bytes is None else outcome.planned_bytes / 1e6,
        "time_s": dict(watch.seconds),
        "time_share": watch.shares(),
        **UNKNOWN,
        **({} if outcome.wing is None else outcome.wing.summary()),
        "suite": outcome.suite,
    }


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def peak_cuda_mb() -> float | None:
    """Peak of the tensors on a CUDA device so far, MB (10^6 bytes); None without one."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


def _git_revision() -> str | None:
    """Revision of the source tree that this package runs from; None for a wheel, or without git."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
