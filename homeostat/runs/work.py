"""What a run does, from top to bottom, once it has its folder and has said its first line.

load the model, evaluate it
the wing prepares: probes and set points, or the persona's contexts; makes the trainer
repeat until the trainer is over, the wing says so, or the run is to stop:
one step                                            trainers/ or steering/
measure what it left, log it, save it, checkpoint it
the wing finishes: held-out episodes, or verdicts; evaluate what was learnt

This folder is the only place that logs, evaluates and saves. `homeostat.runs.run` imports this
module when the first line is out, for it brings along every library that computes with models.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from homeostat.config.evals import BASE, PROMPTED, TRAINED
from homeostat.config.register import build, check_target, target_of
from homeostat.config.resume import save_config
from homeostat.config.run import RunConfig
from homeostat.files import replace_folder, write_text
from homeostat.models.adapter_files import save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.check import check_model, require_sound, save_findings
from homeostat.models.load import BaseModel
from homeostat.models.placement import Placement
from homeostat.report.console import Console
from homeostat.reward.compose import Reward
from homeostat.runs.checkpoint import Checkpoints, seed_generators
from homeostat.runs.context import Run, Wing
from homeostat.runs.homeostasis import RewardWing
from homeostat.runs.memory import as_record, memory_limit, plan_memory
from homeostat.runs.stages import SteeringWing
from homeostat.runs.suite import (
    check_items,
    describe_speed,
    describe_suite,
    measure_suite,
    save_suite,
)
from homeostat.runs.summary import Outcome
from homeostat.signals.own import own_signals
from homeostat.timing import Stopwatch
from homeostat.trainers.pathwise import PATHWISE_COPIES
from homeostat.types import Bots, Trainer

WINGS: dict[str, type[Wing]] = {"reward": RewardWing, "steering": SteeringWing}


def work(run: Run, outcome: Outcome) -> None:
    """Load, evaluate the base, learn, evaluate what has been learnt."""
    config = run.config
    check_items(config)
    check_own(config)
    WINGS[config.trainer.wing].check_files(config)
    seed_generators(config.seed)
    policy = load_policy(config, run.placement, run.console, run.watch)
    check_policy(policy, run.folder, run.console)
    untrained = [BASE] if config.eval.prompted is None else [BASE, PROMPTED]
    arms = {arm: measure_suite(config, policy, arm, run.console, run.watch) for arm in untrained}
    outcome.suite = save_suite(config, arms, run.folder)
    seed_generators(config.seed)  # whatever the suite or its cache have drawn
    outcome.wing = WINGS[config.trainer.wing](run, policy)
    learn(run, policy, outcome.wing, outcome)
    if config.trainer.learns and not run.stop.requested:
        arms[TRAINED] = measure_suite(config, policy, TRAINED, run.console, run.watch)
    outcome.suite = save_suite(config, arms, run.folder)
    for line in (*describe_suite(outcome.suite), describe_speed(outcome.suite)):
        if line is not None:
            run.console.say(line)


def check_own(config: RunConfig) -> None:
    """Look for what the config names of the user's own, before anything is loaded.

    Raises:
        HomeostatError: It cannot be imported, or cannot be what it is to be.
    """
    check_target(config.trainer, Trainer)
    check_target(config.bot, Bots)
    check_target(config.held_out_bot, Bots)
    own_signals(config.signals)
    Reward(config.reward, {})


def learn(run: Run, policy: Policy, wing: Wing, outcome: Outcome) -> None:
    """Everything between the evaluations: prepare, train step by step, measure what was learnt."""
    config = run.config
    if config.trainer.learns:
        outcome.planned_bytes = check_memory(run, policy, wing.sequence_tokens())
    trainer = wing.prepare()
    if trainer is None:
        return
    names = {"trainer": config.trainer.name, "model": config.model.name}
    checkpoints = Checkpoints(run.folder / "checkpoint", names, trainer, policy, run.log, run.watch)
    if config.resume is not None:
        outcome.steps = checkpoints.restore(config.resume_override, run.console.say)
        save_config(config, run.overrides, run.folder)
    wing.start()
    train(run, wing, trainer, checkpoints, outcome)
    wing.finish()


def train(
    run: Run, wing: Wing, trainer: Trainer, checkpoints: Checkpoints, outcome: Outcome
) -> None:
    """Every step that is left; each is measured, logged, saved and checkpointed."""
    steps = trainer.steps()
    while not (trainer.is_over or wing.ended or run.stop.requested):
        began, said = time.perf_counter(), len(trainer.notices)
        with run.console.section(trainer.coming, whole=True, quiet=True) as trainer.progress:
            result = next(steps)
        for notice in trainer.notices[said:]:
            run.console.say(notice)
        wing.after_step(result)
        timing = {f"time/{name}_s": spent for name, spent in run.watch.seconds.items()}
        run.log.step(result.step, result.metrics, result.episodes, timing)
        replace_folder(run.folder / "adapters", partial(save_adapter, checkpoints.policy))
        checkpoints.save(result.step)
        outcome.steps = result.step
        wing.report_step(result, time.perf_counter() - began)


def load_policy(
    config: RunConfig, placement: Placement, console: Console, watch: Stopwatch
) -> Policy:
    """The base model with a fresh adapter."""
    console.say(f"loading {config.model.name} ({placement})")
    with watch("load"):
        base = build(config.model, BaseModel, device=placement.device, dtype=placement.dtype)
        return Policy(base, config.lora, config.seed)


def check_policy(policy: Policy, folder: Path, console: Console) -> None:
    """Check that the model is read here as it is; keeps what was found and says what to note.

    Raises:
        HomeostatError: It is not.
    """
    findings = check_model(policy)
    save_findings(folder, findings)
    require_sound(findings)
    for finding in findings:
        if finding.sentence is not None:
            console.say(f"{finding.name}: {finding.sentence}")


def check_memory(run: Run, policy: Policy, length: int) -> int:
    """Show what training will hold in memory; returns the bytes.

    Args:
        run: Its folder and console are told.
        policy: Before training.
        length: Tokens of the longest conversation.

    Raises:
        HomeostatError: It is more than there is.
    """
    config = run.config.trainer
    footprint = target_of(config).footprint(config, length)
    if run.config.reward.pathwise:
        copies = footprint.logit_copies + PATHWISE_COPIES
        footprint = replace(footprint, logit_copies=copies)
    plan = plan_memory(policy, footprint)
    limit = memory_limit(policy.device, run.config.memory.limit_gb, plan.weights)
    write_text(run.folder / "memory.json", json.dumps(as_record(plan, limit), indent=2))
    run.console.memory(plan.parts(), plan.total, limit)
    plan.require(limit, config.micro_batch_key)
    return plan.total
