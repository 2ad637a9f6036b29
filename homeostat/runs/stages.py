"""The stages of a run of steer and heal: measure the base, then steer, heal and measure in turn.

Like `homeostat.runs.run`, which calls it, it logs, evaluates and saves; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homeostat.config.register import build
from homeostat.config.run import RunConfig
from homeostat.config.steering import PersonaConfig, SteerHealConfig
from homeostat.evals.foundations import read_vignettes
from homeostat.evals.stages import (
    BASE,
    DIARY,
    PROMPTED,
    Row,
    Stages,
    aggregate,
    compare_arms,
    trait_per_nat,
)
from homeostat.evals.verdicts import Verdict, judge_run
from homeostat.files import LOST, read_rows, replace_folder
from homeostat.models.adapters import Policy
from homeostat.models.cache import file_sha256, remembered
from homeostat.report.console import Console
from homeostat.report.metrics import MetricsLog, write_rows
from homeostat.rollout.replies import Sampling
from homeostat.runs.checkpoint import Checkpoints
from homeostat.runs.interrupt import Interrupt
from homeostat.steering.loop import HEALED, STEERED, SteerHeal
from homeostat.timing import Stopwatch
from homeostat.types import StepResult

EVALUATION = 13  # key of the random numbers behind the replies that measure a stage


class StageLog:
    """What every stage measured, kept in the run folder after each stage.

    ``rounds.jsonl`` has a row per round and stage, ``evals/stages.jsonl`` a row per item,
    ``evals/filter.jsonl`` what fell by dose and gate, ``evals/diary.jsonl`` one question all along,
    ``heal.jsonl`` a row per step of healing.
    """

    NAMES = (
        "rounds.jsonl",
        "heal.jsonl",
        "evals/stages.jsonl",
        "evals/filter.jsonl",
        "evals/diary.jsonl",
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.NAMES}

    def resume(self, done: int) -> bool:
        """Read what an earlier process kept of the ``done`` stages; whether the base is there."""
        for name in self.NAMES:
            path = self.folder / name
            found = read_rows(path, LOST) if path.exists() else []
            self.rows[name] = [row for row in found if _stage_number(row) <= done]
        return bool(self.arm(0, PROMPTED))

    def arm(self, round_: int, stage: str) -> list[dict[str, Any]]:
        """Rows of one arm."""
        items = self.rows["evals/stages.jsonl"]
        return [r for r in items if (r["round"], r["stage"]) == (round_, stage)]

    def arms(self) -> dict[tuple[int, str], list[dict[str, Any]]]:
        """Rows of every arm by round and stage."""
        found: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in self.rows["evals/stages.jsonl"]:
            found.setdefault((row["round"], row["stage"]), []).append(row)
        return found

    def add(self, name: str, rows: Sequence[Mapping[str, Any]], round_: int, stage: str) -> None:
        """Keep rows of a stage, with its round and name in front."""
        self.rows[name] += [{"round": round_, "stage": stage, **row} for row in rows]

    def save(self) -> None:
        """Write every file anew, each whole or not at all."""
        for name, rows in self.rows.items():
            if rows:
                write_rows(self.folder / name, rows)


def _stage_number(row: Mapping[str, Any]) -> int:
    """How many of the loop's stages were done when this row had been measured."""
    return 0 if row["round"] == 0 else 2 * row["round"] - (row["stage"] == STEERED)


def run_steer_heal(
    config: RunConfig,
    policy: Policy,
    folder: Path,
    console: Console,
    watch: Stopwatch,
    log: MetricsLog,
    stop: Interrupt,
) -> tuple[int, dict[str, Any], str | None]:
    """Steer and heal until the rounds are over, the filter starves, or coherence is lost.

    Returns:
        Stages done, what summary.json is to hold, and why the run ended early, if it did.
    """
    trainer_config, persona = config.trainer, config.persona
    assert isinstance(trainer_config, SteerHealConfig)
    assert persona is not None
    trainer: SteerHeal = build(
        trainer_config, policy=policy, persona=persona, seed=config.seed, watch=watch
    )
    names = {"trainer": config.trainer.name, "model": config.model.name}
    checkpoints = Checkpoints(folder / "checkpoint", names, trainer, policy, log, watch)
    kept = StageLog(folder)
    if config.resume is not None:
        checkpoints.restore(config.resume_override, console.say)
    measured = config.resume is not None and kept.resume(trainer.done)
    if trainer.base_perplexity is None:
        trainer.base_perplexity = base_perplexity(config, trainer, console)
    stages = make_stages(config, trainer, persona)
    if not measured:
        measure_fixed_arms(config, stages, policy, kept, console, watch)
    ended = lost_coherence(kept, stages, trainer.done)
    results = iter(trainer.steps())
    while ended is None and not stop.requested and not trainer.is_over:
        coming = trainer.done // 2 + 1
        name = HEALED if trainer.done % 2 else STEERED
        said = len(trainer.notices)
        with console.stage(f"round {coming}: {name}") as progress:
            trainer.progress = progress
            result = next(results)
        for notice in trainer.notices[said:]:
            console.say(notice)
        finish_stage(config, result, trainer, stages, kept, checkpoints, folder, console)
        ended = lost_coherence(kept, stages, trainer.done)
    if trainer.starved is not None:
        ended = f"starved: {trainer.starved}"
    found = verdicts(kept, trainer_config, stages)
    summary = summary_of(persona, trainer_config, found) | {"notices": trainer.notices}
    return trainer.done, summary, ended


def make_stages(config: RunConfig, trainer: SteerHeal, persona: PersonaConfig) -> Stages:
    """The measurement of every stage."""
    own = trainer.config
    assert trainer.base_perplexity is not None
    return Stages(
        own.stages,
        persona,
        trainer.held_out,
        read_vignettes(per_foundation=own.stages.vignettes) if own.stages.vignettes else [],
        Sampling(own.stages.max_new_tokens, own.temperature, (config.seed, EVALUATION)),
        trainer.base_perplexity,
    )


def before_healing(config: RunConfig, policy: Policy, what: str, compute: Callable[[], Any]) -> Any:
    """What was measured before the first healing, from the cache where nothing has changed.

    The arms of a sweep over barriers share it: neither adapter nor barrier has acted yet.
    """
    if not config.signals.cache:
        return compute()
    later = ("lr", "max_steps", "gradient_checkpointing", "heal", "barrier")
    acting = {name: value for name, value in asdict(config.trainer).items() if name not in later}
    base = (policy.base.fingerprint, str(policy.dtype), policy.device.type)
    assert isinstance(config.trainer, SteerHealConfig)
    path = config.trainer.vector.contexts_path
    contexts = None if path is None else file_sha256(Path(path).expanduser())
    recipe = [what, *base, config.seed, config.persona, acting, contexts]
    return remembered("stages", recipe, compute)


def base_perplexity(config: RunConfig, trainer: SteerHeal, console: Console) -> float:
    """Median perplexity of the base's own replies."""

    def compute() -> float:
        with console.stage("the base's own replies") as progress:
            trainer.progress = progress
            return trainer.measure_base()

    return float(before_healing(config, trainer.policy, "base_perplexity", compute))


def measure_fixed_arms(
    config: RunConfig,
    stages: Stages,
    policy: Policy,
    kept: StageLog,
    console: Console,
    watch: Stopwatch,
) -> None:
    """The base, and the base told to be the persona; neither changes over the rounds."""
    for name in (BASE, PROMPTED):

        def compute(name: str = name) -> list[Row]:
            stage = console.stage(f"measure: {name}")
            with stage as progress, watch("evaluate"), policy.reference():
                return stages.measure(policy, name == PROMPTED, progress)

        keep_arm(kept, before_healing(config, policy, name, compute), 0, name, {}, stages)
    kept.save()


def finish_stage(
    config: RunConfig,
    result: StepResult,
    trainer: SteerHeal,
    stages: Stages,
    kept: StageLog,
    checkpoints: Checkpoints,
    folder: Path,
    console: Console,
) -> None:
    """Measure a stage, log it, keep it and checkpoint it."""
    policy, stage = trainer.policy, str(result.stage)
    round_ = (result.step + 1) // 2
    context = result.measure_in or nullcontext()
    completions = result.episodes if stage == STEERED else ()
    if stage == STEERED:
        kept.add("evals/filter.jsonl", trainer.filter_report(completions), round_, stage)
    else:
        kept.add("heal.jsonl", result.episodes, round_, stage)
    if not (stage == STEERED and trainer.starved):

        def compute() -> list[Row]:
            title = f"round {round_}: measure {stage}"
            with console.stage(title) as progress, checkpoints.watch("evaluate"), context:
                return stages.measure(policy, progress=progress)

        untrained = result.step == 1
        rows = before_healing(config, policy, stage, compute) if untrained else compute()
        row = keep_arm(kept, rows, round_, stage, result.metrics, stages)
        console.say(describe_stage(round_, stage, row))
    timing = {f"time/{name}_s": spent for name, spent in checkpoints.watch.seconds.items()}
    checkpoints.log.step(result.step, result.metrics, completions, timing)
    if stage == STEERED and trainer.vector is not None:
        about = {"persona": stages.persona.name, "round": str(round_), "model": policy.base.name}
        path = folder / "vectors" / f"round_{round_}.safetensors"
        path.parent.mkdir(exist_ok=True)
        trainer.vector.save(path, about | {"fingerprint": policy.base.fingerprint})
    replace_folder(folder / "adapters", policy.save_adapter)
    kept.save()
    checkpoints.save(result.step)


def keep_arm(
    kept: StageLog,
    rows: Sequence[Row],
    round_: int,
    stage: str,
    metrics: Mapping[str, float],
    stages: Stages,
) -> dict[str, Any]:
    """Add an arm's items and its row in rounds.jsonl; returns that row."""
    entries = [
        {key: row[key] for key in ("question", "reply")} for row in rows if row["kind"] == DIARY
    ]
    kept.add("evals/diary.jsonl", entries, round_, stage)
    rows = [row for row in rows if row["kind"] != DIARY]
    kept.add("evals/stages.jsonl", rows, round_, stage)
    row: dict[str, Any] = {**aggregate(rows), **metrics}
    base = kept.arm(0, BASE)
    if stage != BASE:
        samples = stages.config.bootstrap_samples
        moved = compare_arms(base, rows, samples)
        row["moved"] = {name: asdict(found) for name, found in moved.items()}
        row["trait_per_nat"] = asdict(trait_per_nat(base, rows, samples))
    kept.add("rounds.jsonl", [row], round_, stage)
    return row


def lost_coherence(kept: StageLog, stages: Stages, done: int) -> str | None:
    """Why the loop must stop, if the newest healed model is below the floor."""
    if done == 0 or done % 2:
        return None
    share = aggregate(kept.arm(done // 2, HEALED))["coherence"]
    floor = stages.config.coherence_floor
    if share is None or share >= floor:
        return None
    return (
        f"broken: {share:.2f} of the healed model's replies are coherent in round {done // 2}, and "
        f"trainer.stages.coherence_floor={floor:g}"
    )


def verdicts(kept: StageLog, config: SteerHealConfig, stages: Stages) -> list[Verdict]:
    """The answers to the five questions, as far as the run has come."""
    by_round: dict[int, tuple[int, int]] = {}
    for row in kept.rows["evals/filter.jsonl"]:
        passed, total = by_round.get(row["round"], (0, 0))
        by_round[row["round"]] = (passed + row["kept"], total + row["n"])
    filtered = [by_round[n] for n in sorted(by_round)]
    return judge_run(kept.arms(), filtered, config.min_kept, stages.config)


def summary_of(
    persona: PersonaConfig, config: SteerHealConfig, found: Sequence[Verdict]
) -> dict[str, Any]:
    """What summary.json says about a run of steer and heal."""
    return {
        "persona": {
            "name": persona.name,
            "positive": persona.positive,
            "negative": persona.negative,
        },
        "coherence_floor": config.stages.coherence_floor,
        "verdicts": [asdict(verdict) for verdict in found],
    }


def describe_stage(round_: int, stage: str, row: Mapping[str, Any]) -> str:
    """One line about a stage."""
    trait = row["moved"]["trait_nats"]
    low, high = trait["ci95"] or (float("nan"), float("nan"))
    return (
        f"round {round_} {stage}: trait {trait['diff']:+.3f} [{low:+.3f}, {high:+.3f}] nats/token, "
        f"coherent {row['coherence']:.2f}, perplexity {row['median_perplexity']:.1f}, "
        f"KL {row['kl_nats_per_token']:.2f}"
    )
