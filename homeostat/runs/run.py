"""One run, from top to bottom; the only place that logs, evaluates and saves."""

from __future__ import annotations

import gc
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import homeostat
from homeostat.config.register import build
from homeostat.config.resume import resume_command, save_config
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.config.steering import SteerHealConfig
from homeostat.config.trainers import NoTrainerConfig
from homeostat.errors import HomeostatError
from homeostat.evals.homeostasis import Homeostasis, perception_validity
from homeostat.files import alone_in, remove_leftovers, replace_folder, write_text
from homeostat.models.adapters import Policy
from homeostat.models.load import resolve_device, resolve_dtype
from homeostat.report.console import Console
from homeostat.report.html import write_report
from homeostat.report.metrics import MetricsLog, plain, write_rows
from homeostat.reward.compose import Reward
from homeostat.reward.valence import resolve
from homeostat.runs.checkpoint import Checkpoints, checkpoints_in, seed_generators
from homeostat.runs.interrupt import Interrupt
from homeostat.runs.memory import advise_memory, as_record, memory_limit, micro_key, plan_memory
from homeostat.runs.perceive import (
    allowed_set_points,
    measure_base,
    perceive,
    save_calibration,
    validate_intrinsic,
    watch_probes,
)
from homeostat.runs.stages import run_steer_heal
from homeostat.runs.suite import (
    BASE,
    NOTHING,
    TRAINED,
    check_items,
    describe_speed,
    describe_suite,
    measure_suite,
    save_suite,
)
from homeostat.signals.probing.perception import Perception
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.types import EvalResult

PACKAGES = ("torch", "transformers", "peft", "trl", "hydra-core", "numpy", "scikit-learn", "wandb")


@dataclass
class Outcome:
    """What a run has found out so far; becomes summary.json."""

    status: str = "running"
    steps: int = 0
    comparison: EvalResult | None = None
    loop: Mapping[str, Any] | None = None
    perception: Perception | None = None
    allowed: tuple[str, ...] = ()
    failures: Mapping[str, Any] | None = None
    staleness: Mapping[str, Any] | None = None
    planned_bytes: int | None = None
    ended: str | None = None  # why a run was over before its last step, though nothing failed
    steering: Mapping[str, Any] = field(default_factory=dict)
    suite: Mapping[str, Any] = field(default_factory=dict)


def run(config: RunConfig, folder: Path, console: Console, overrides: Sequence[str] = ()) -> str:
    """Do one run in ``folder``, or with ``config.resume`` what is left of the run in there.

    Args:
        config: Of the run.
        folder: Made if absent.
        console: Told how the run is getting on.
        overrides: What the config was composed from, for a later resume.

    Returns:
        ``finished`` or ``interrupted``; whatever was measured is in the folder either way.

    Raises:
        HomeostatError: The run could not go on; ``summary.json`` then says ``failed`` and why.
    """
    _free_memory()  # what a failed job of a sweep has left behind
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        prepare_folder(config, folder, overrides)
        return _run_in(config, folder, console, overrides)


def _run_in(config: RunConfig, folder: Path, console: Console, overrides: Sequence[str]) -> str:
    watch, outcome = Stopwatch(), Outcome()
    console.say(
        f"{config.trainer.name} on {config.model.name}, bot {config.bot.name}, seed {config.seed}"
        f" → {folder}"
    )
    log: MetricsLog | None = None
    try:
        with Interrupt() as stop:
            log = MetricsLog(folder, config.wandb, asdict(config))
            _run_stages(config, folder, console, overrides, watch, outcome, log, stop)
        outcome.status = "interrupted" if stop.requested else outcome.ended or "finished"
    except BaseException as error:
        lacking = advise_memory(config.trainer, error)
        outcome.status = f"failed: {lacking or error or type(error).__name__}"
        if outcome.steps:
            console.say(f"continue with {resume_command(folder)}")
        if lacking is not None:
            raise HomeostatError(lacking) from error
        raise
    finally:
        summary = save_summary(config, outcome, watch, folder)
        if log is not None:
            log.close(summary)
        _free_memory()
    with console.stage("report"), watch("report"):
        write_report(folder)
    save_summary(config, outcome, watch, folder)
    if outcome.comparison is not None and outcome.status == "finished":
        console.comparison(outcome.comparison.metrics)
    if isinstance(config.trainer, NoTrainerConfig) and outcome.perception is not None:
        console.verdicts(outcome.perception.reports)
    console.say(f"{outcome.status}: {folder / 'report.html'}")
    if outcome.status == "interrupted":
        console.say(f"continue with {resume_command(folder)}")
    return outcome.status


def _run_stages(
    config: RunConfig,
    folder: Path,
    console: Console,
    overrides: Sequence[str],
    watch: Stopwatch,
    outcome: Outcome,
    log: MetricsLog,
    stop: Interrupt,
) -> None:
    """Load, evaluate the base, learn, evaluate what has been learnt."""
    check_items(config)
    seed_generators(config.seed)
    policy = load_policy(config, console, watch)
    base = measure_suite(config, policy, BASE, console, watch)
    outcome.suite = save_suite(config, base, NOTHING, folder)
    _learn(policy, config, folder, console, overrides, watch, outcome, log, stop)
    learnt = not isinstance(config.trainer, NoTrainerConfig) and not stop.requested
    trained = measure_suite(config, policy, TRAINED, console, watch) if learnt else NOTHING
    outcome.suite = save_suite(config, base, trained, folder)
    for line in (*describe_suite(outcome.suite), describe_speed(outcome.suite)):
        if line is not None:
            console.say(line)


def _learn(
    policy: Policy,
    config: RunConfig,
    folder: Path,
    console: Console,
    overrides: Sequence[str],
    watch: Stopwatch,
    outcome: Outcome,
    log: MetricsLog,
    stop: Interrupt,
) -> None:
    """Fit probes, calibrate, measure, train, measure again."""
    seed_generators(config.seed)  # whatever the suite or its cache have drawn
    if isinstance(config.trainer, SteerHealConfig):
        outcome.planned_bytes = check_memory(config, policy, None, folder, console)
        outcome.steps, outcome.steering, outcome.ended = run_steer_heal(
            config, policy, folder, console, watch, log, stop
        )
        return
    bots = build(config.bot)
    if not isinstance(config.trainer, NoTrainerConfig):
        outcome.planned_bytes = check_memory(config, policy, bots, folder, console)
    outcome.perception = perceive(config, policy, folder, console, watch)
    probes = outcome.perception.probes if outcome.perception else None
    reader = SignalReader(policy, config.signals, probes)
    calibration, outcome.loop = measure_base(
        config, reader, outcome.perception, bots, console, watch
    )
    # What the cache has spared so far must not shift what is drawn from here on.
    seed_generators(config.seed)
    allowed = allowed_set_points(config, outcome.perception, console)
    outcome.allowed = tuple(name for name in AFFECTS if name in allowed)
    set_points = resolve(allowed, calibration)
    save_calibration(folder, calibration, {k: asdict(v) for k, v in set_points.items()})
    if stop.requested:
        return
    if isinstance(config.trainer, NoTrainerConfig):
        outcome.failures = validate_intrinsic(
            config, reader, bots, calibration, folder, console, watch
        )
        return
    reward = Reward(config.reward, set_points)
    evaluation: Homeostasis = build(
        config.eval, policy=policy, bots=bots, reader=reader, reward=reward, rollout=config.rollout
    )
    before = evaluate(evaluation, "base", console, watch)
    save_evaluation(folder, evaluation, outcome, before, [])
    outcome.loop = perception_validity(before)

    trainer = build(
        config.trainer,
        policy=policy,
        bots=bots,
        reader=reader,
        reward=reward,
        rollout=config.rollout,
        seed=config.seed,
        watch=watch,
    )
    names = {"trainer": config.trainer.name, "model": config.model.name}
    checkpoints = Checkpoints(folder / "checkpoint", names, trainer, policy, log, watch)
    if config.resume is not None:
        outcome.steps = checkpoints.restore(config.resume_override, console.say)
        save_config(config, overrides, folder)
    train(trainer, checkpoints, config.trainer.max_steps, folder, console, outcome, stop)
    if stop.requested:
        return
    after = evaluate(evaluation, "trained", console, watch)
    save_evaluation(folder, evaluation, outcome, before, after)
    outcome.staleness = watch_probes(config, policy, outcome.perception, console, watch)


def train(
    trainer: Any,
    checkpoints: Checkpoints,
    total: int,
    folder: Path,
    console: Console,
    outcome: Outcome,
    stop: Interrupt,
) -> None:
    """Every update that is left, up to ``total``; each is logged, then saved, then checkpointed."""
    clock = time.perf_counter()
    for result in trainer.steps():
        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        timing = {f"time/{name}_s": spent for name, spent in checkpoints.watch.seconds.items()}
        checkpoints.log.step(result.step, result.metrics, result.episodes, timing)
        replace_folder(folder / "adapters", checkpoints.policy.save_adapter)
        checkpoints.save(result.step)
        console.update(result.step, total, result.metrics, seconds)
        outcome.steps = result.step
        if stop.requested:
            return


def load_policy(config: RunConfig, console: Console, watch: Stopwatch) -> Policy:
    """The base model with a fresh adapter."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    console.say(f"loading {config.model.name} ({device}, {str(dtype).removeprefix('torch.')})")
    with watch("load"):
        return Policy(build(config.model, device=device, dtype=dtype), config.lora, config.seed)


def check_memory(
    config: RunConfig, policy: Policy, bots: Any, folder: Path, console: Console
) -> int:
    """Show what training will hold in memory; returns the bytes.

    Raises:
        HomeostatError: It is more than there is.
    """
    plan = plan_memory(policy, config.trainer, config.rollout, bots)
    limit = memory_limit(policy.device, config.memory.limit_gb, plan.weights)
    write_text(folder / "memory.json", json.dumps(as_record(plan, limit), indent=2))
    console.memory(plan.parts(), plan.total, limit)
    plan.require(limit, micro_key(config.trainer))
    return plan.total


def evaluate(
    evaluation: Homeostasis, arm: str, console: Console, watch: Stopwatch
) -> list[dict[str, Any]]:
    """Measure the policy on the held-out episodes; ``base`` means with the adapter off."""
    context = evaluation.policy.reference() if arm == "base" else nullcontext()
    with context, console.stage(f"held-out episodes, {arm}") as progress, watch("evaluate"):
        return evaluation.measure(arm, playing=progress)


def prepare_folder(config: RunConfig, folder: Path, overrides: Sequence[str]) -> None:
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
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    write_text(folder / "environment.json", json.dumps(environment, indent=2))


def save_evaluation(
    folder: Path,
    evaluation: Homeostasis,
    outcome: Outcome,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> None:
    """Write the rows of both arms and keep their comparison."""
    outcome.comparison = evaluation.compare(before, after)
    write_rows(folder / "evals" / f"{outcome.comparison.name}.jsonl", outcome.comparison.rows)


def save_summary(
    config: RunConfig, outcome: Outcome, watch: Stopwatch, folder: Path
) -> dict[str, Any]:
    """Write summary.json; returns what it holds."""
    summary = summarise(config, outcome, watch)
    write_text(folder / "summary.json", json.dumps(plain(summary), indent=2))
    return summary


def summarise(config: RunConfig, outcome: Outcome, watch: Stopwatch) -> dict[str, Any]:
    """What summary.json holds."""
    found = outcome.comparison
    reports = outcome.perception.reports if outcome.perception else {}
    return {
        "status": outcome.status,
        "trainer": config.trainer.name,
        "model": config.model.name,
        "bot": config.bot.name,
        "seed": config.seed,
        "steps": outcome.steps,
        "max_steps": config.trainer.max_steps,
        "wall_s": watch.wall_s,
        "peak_rss_mb": peak_rss_mb(),
        "peak_cuda_mb": peak_cuda_mb(),
        "planned_mb": None if outcome.planned_bytes is None else outcome.planned_bytes / 1e6,
        "time_s": dict(watch.seconds),
        "time_share": watch.shares(),
        "probe_auroc": {name: report.auroc for name, report in reports.items()},
        "probe_verdict": {name: report.verdict for name, report in reports.items()},
        "rewarded_affects": outcome.allowed,
        "perception": outcome.loop,
        "staleness": outcome.staleness,
        "failures": outcome.failures,
        "eval": {name: asdict(e) for name, e in found.metrics.items()} if found else {},
        "suite": outcome.suite,
        **outcome.steering,
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


def _free_memory() -> None:
    """Leave nothing behind for the next job of a sweep in the same process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
