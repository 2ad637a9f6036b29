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
from homeostat.checkpoint import Checkpoints, checkpoints_in, seed_generators
from homeostat.config import AFFECTS, RunConfig, SetPointConfig, build
from homeostat.config_steering import SteerHealConfig
from homeostat.config_trainers import NoTrainerConfig
from homeostat.errors import HomeostatError
from homeostat.evals.failures import Failures, verdicts
from homeostat.evals.homeostasis import Homeostasis, perception_validity
from homeostat.evals.staleness import measure_staleness, stale
from homeostat.files import alone_in, remove_leftovers, replace_folder, write_text
from homeostat.interrupt import Interrupt
from homeostat.models.adapters import Policy
from homeostat.models.cache import remembered
from homeostat.models.load import resolve_device, resolve_dtype
from homeostat.report.console import Console, number
from homeostat.report.html import write_report
from homeostat.report.metrics import MetricsLog, plain, write_rows
from homeostat.resume import resume_command, save_config
from homeostat.reward.compose import Reward
from homeostat.reward.valence import resolve, resolve_one
from homeostat.rollout.episodes import calibration_seeds, play
from homeostat.run_steer_heal import run_steer_heal
from homeostat.run_suite import (
    BASE,
    TRAINED,
    check_items,
    describe_suite,
    measure_suite,
    save_suite,
)
from homeostat.signals.calibration import QUANTILES, Calibration, calibrate
from homeostat.signals.perception import Perception, obtain_perception, what_is_measured
from homeostat.signals.reader import SignalReader, episode_record
from homeostat.timing import Stopwatch
from homeostat.trainers.memory import as_record, memory_limit, micro_key, plan_memory
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
        outcome.status = f"failed: {error or type(error).__name__}"
        if outcome.steps:
            console.say(f"continue with {resume_command(folder)}")
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
    outcome.suite = save_suite(config, base, {}, folder)
    _learn(policy, config, folder, console, overrides, watch, outcome, log, stop)
    learnt = not isinstance(config.trainer, NoTrainerConfig) and not stop.requested
    trained = measure_suite(config, policy, TRAINED, console, watch) if learnt else {}
    outcome.suite = save_suite(config, base, trained, folder)
    for line in describe_suite(outcome.suite):
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


def perceive(
    config: RunConfig, policy: Policy, folder: Path, console: Console, watch: Stopwatch
) -> Perception | None:
    """The affect probes and what they are worth; None for a run without them."""
    if config.signals.affect is None:
        return None
    with console.stage("affect probes") as progress, watch("probes"):
        found = obtain_perception(policy, config.signals, progress)
    found.save(folder / "probes")
    for notice in found.notices:
        console.say(notice)
    return found


def allowed_set_points(
    config: RunConfig, perception: Perception | None, console: Console
) -> dict[str, SetPointConfig]:
    """The set points that the probes' verdicts allow; says which are left out.

    Raises:
        HomeostatError: Nothing is left to reward, and the run is to train.
    """
    points = {n: p for n, p in config.reward.set_points.items() if p.weight > 0}
    affect = config.signals.affect
    if affect is None or perception is None:
        return points
    allowed = perception.allowed(affect.require)
    left_out = [name for name in points if name in AFFECTS and name not in allowed]
    for name in left_out:
        report = perception.reports.get(name)
        why = f"is {report.verdict} ({report.reason})" if report else "has no probe"
        console.say(f"{name} is left out of the reward: it {why}")
    kept = {name: point for name, point in points.items() if name not in left_out}
    validating = isinstance(config.trainer, NoTrainerConfig)
    if not kept and not config.reward.terms and not validating:
        raise HomeostatError(
            f"signals.affect.require={affect.require} leaves no signal to reward; lower it, or "
            "add intrinsic signals with reward=full."
        )
    return kept


def measure_base(
    config: RunConfig,
    reader: SignalReader,
    perception: Perception | None,
    bots: Any,
    console: Console,
    watch: Stopwatch,
) -> tuple[Calibration, dict[str, Any]]:
    """The base model's own conversations: its signals, and whether it perceives the bots."""
    policy = reader.policy

    def compute() -> dict[str, Any]:
        seeds = calibration_seeds(config.signals.calibration_episodes)
        temperature = config.signals.calibration_temperature
        stage = console.stage("set points: episodes")
        with policy.reference(), stage as progress, watch("generate"):
            episodes = play(policy, bots, seeds, config.rollout, temperature, progress)
        with console.stage("set points: signals") as progress, watch("trace"):
            found, readings = calibrate(reader, [e.conversation for e in episodes], progress)
        records = [episode_record(e, readings, i, reader.affects) for i, e in enumerate(episodes)]
        return {
            "values": found.values,
            "base_norms": found.base_norms.tolist(),
            "loop": perception_validity(records),
        }

    digest = perception.corpus.digest if perception else None
    found = _remembered(config, policy, digest, "set_points", compute)
    calibration = Calibration.of(found["values"], found["base_norms"])
    reader.base_norms = calibration.base_norms
    return calibration, found["loop"]


def validate_intrinsic(
    config: RunConfig,
    reader: SignalReader,
    bots: Any,
    calibration: Calibration,
    folder: Path,
    console: Console,
    watch: Stopwatch,
) -> dict[str, Any] | None:
    """Failures made on the model, and which signals see them; None without intrinsic signals."""
    if config.signals.intrinsic is None:
        return None
    points = {
        name: resolve_one(name, config.reward.set_points[name], calibration)
        for name in config.signals.intrinsic.names
        if name in config.reward.set_points and calibration.n[name]
    }
    failures = Failures(
        reader, bots, config.signals.calibration_temperature, config.rollout.max_new_tokens
    )

    def compute() -> list[dict[str, Any]]:
        with console.stage("failures: replies") as progress, watch("failures"):
            return failures.measure(config.signals.validation_replies, points, progress)

    judged = {name: asdict(point) for name, point in points.items()}
    rows = _remembered(config, reader.policy, judged, "failures", compute)
    write_rows(folder / "evals" / "failures.jsonl", rows)
    found = verdicts(rows)
    console.failures(found)
    return found


def watch_probes(
    config: RunConfig,
    policy: Policy,
    perception: Perception | None,
    console: Console,
    watch: Stopwatch,
) -> dict[str, Any] | None:
    """Whether the probes have gone stale under training; None for a run without probes."""
    if perception is None or config.signals.affect is None:
        return None
    with console.stage("staleness of the probes") as progress, watch("evaluate"):
        found = measure_staleness(policy, perception, config.signals.affect, progress)
    for affect in stale(found):
        console.say(
            f"the probe of {affect} has gone stale: AUROC {number(found[affect]['auroc_off'])} → "
            f"{number(found[affect]['auroc_on'])}, its reading moved by "
            f"{number(found[affect]['distance'])}"
        )
    return found


def _remembered(config: RunConfig, policy: Policy, depends_on: Any, kind: str, compute: Any) -> Any:
    """What ``compute`` finds out about the base model, from the cache where nothing has changed."""
    if not config.signals.cache:
        return compute()
    recipe = [
        policy.base.fingerprint,
        str(policy.dtype),
        policy.device.type,
        depends_on,
        what_is_measured(config.signals),
        *(asdict(part) for part in (config.bot, config.rollout)),
    ]
    return remembered(kind, recipe, compute)


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
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    write_text(folder / "environment.json", json.dumps(environment, indent=2))


def save_calibration(folder: Path, calibration: Calibration, set_points: Mapping[str, Any]) -> None:
    """Write set_points.json: what the base model showed, and what the reward uses."""
    signals = {
        name: {
            "n": calibration.n[name],
            "quantiles": dict(zip(map(str, QUANTILES), q, strict=True)),
            "values": calibration.values[name],
        }
        for name, q in calibration.quantiles.items()
    }
    norms = calibration.base_norms.tolist()
    about = {"signals": signals, "set_points": set_points, "base_norms": norms}
    write_text(folder / "set_points.json", json.dumps(plain(about), indent=2))


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
