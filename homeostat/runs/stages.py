"""The second wing: every stage of steer and heal, measured on the same items as the base.

The base and the base that is told to be the persona are measured first, then the student after each
steering and after each healing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from homeostat.config.persona import PersonaConfig
from homeostat.config.register import build
from homeostat.config.run import RunConfig
from homeostat.config.steering import SteeringConfig
from homeostat.errors import HomeostatError
from homeostat.evals.foundations import FOUNDATIONS, read_vignettes
from homeostat.evals.stages import (
    ABLATED,
    BASE,
    BASE_ABLATED,
    CONTRARY,
    EXAMPLES,
    PROMPTED,
    TOLD,
    Row,
    Stages,
    stage_figures,
)
from homeostat.evals.verdicts import Verdict, run_verdicts
from homeostat.models.adapters import Policy
from homeostat.runs.arm_log import REVERSED, ArmLog, keep_arm, stage_number
from homeostat.runs.before_healing import (
    base_vector,
    before_healing,
    best_examples,
    best_line,
    check_reading,
)
from homeostat.runs.context import Run
from homeostat.runs.memory import PROMPT_TOKENS
from homeostat.steering.bank import fallen_by_gate
from homeostat.steering.trainer import (
    DROPPED,
    HEALED,
    STEERED,
    SteeringTrainer,
    share_contexts,
)
from homeostat.steering.vectors import PersonaVector
from homeostat.types import StepResult, Trainer

EVALUATION = 13  # key of the random numbers behind the replies that measure an arm


class SteeringWing:
    """What a run of the second founding system measures; see `homeostat.runs.context.Wing`."""

    @staticmethod
    def check_files(config: RunConfig) -> None:
        """See `Wing.check_files`: the contexts of the persona's vector, prompts for its lines."""
        trainer: SteeringConfig = config.trainer  # type: ignore[assignment]
        persona: PersonaConfig = config.persona  # type: ignore[assignment]
        share_contexts(trainer, persona)
        stages = trainer.stages
        for name in persona.foundations:
            if name not in FOUNDATIONS:
                raise HomeostatError(
                    f"persona.foundations.{name} is no moral foundation; allowed are "
                    f"{', '.join(FOUNDATIONS)}."
                )
        if (stages.lines or stages.examples) and not persona.prompts:
            raise HomeostatError(
                "trainer.stages.lines and examples are judged on persona.prompts, and "
                f"{persona.name} has none; give some, or leave lines and examples away."
            )
        there = len(persona.held_out_prompts[: stages.prompts])
        if stages.turns > 1 and there < stages.turns:
            raise HomeostatError(
                f"trainer.stages.turns={stages.turns} asks a held-out prompt in each turn, and "
                f"{there} are there (trainer.stages.prompts={stages.prompts}, {persona.name} has "
                f"{len(persona.held_out_prompts)}); use fewer turns, or more prompts."
            )

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run = run
        self.policy = policy
        self.persona: PersonaConfig = run.config.persona  # type: ignore[assignment]
        self.config: SteeringConfig = run.config.trainer  # type: ignore[assignment]
        self.kept = ArmLog(run.folder)
        self.trainer: SteeringTrainer | None = None
        self.stages: Stages | None = None
        self.verdicts: list[Verdict] = []
        self._saved: PersonaVector | None = None  # the vector that was written last

    def sequence_tokens(self) -> int:
        """See `Wing.sequence_tokens`."""
        return PROMPT_TOKENS + self.config.max_new_tokens

    def prepare(self) -> Trainer:
        """Make the trainer; what it needs to know of the base is measured at the start."""
        run = self.run
        self.trainer = build(
            self.config,
            SteeringTrainer,
            policy=self.policy,
            persona=self.persona,
            seed=run.config.seed,
            watch=run.watch,
        )
        return self.trainer

    def start(self) -> None:
        """Measure the base and the base that is told to be the persona; neither ever changes."""
        trainer, run = self._trainer, self.run
        measured = run.config.resume is not None and self.kept.resume(trainer.done)
        if trainer.base_perplexity is None:
            trainer.base_perplexity = self._base_perplexity()
        stages = make_stages(trainer, self.persona)
        vector = base_vector(run, self.policy, trainer) if stages.prompts else None
        trainer.base_vector = vector
        line = best_line(run, self.policy, stages)
        self.stages = replace(stages, vector=vector, line=line)
        if line is not None:
            trainer.tell(line)
        if not measured:
            self._measure_base()
            self.kept.save()

    def _base_perplexity(self) -> float:
        """Median perplexity of the base's own replies."""
        trainer, run = self._trainer, self.run

        def compute() -> float:
            with run.console.section("the base's own replies") as trainer.progress:
                return trainer.measure_base()

        return float(before_healing(run.config, self.policy, "base_perplexity", compute))

    def _measure_base(self) -> None:
        """The base as it is, told to be the persona, and whatever else is asked of it."""
        stages, asked = self._stages, self.config.stages
        self._measure_fixed(BASE, stages)
        self._measure_fixed(PROMPTED, stages)
        if asked.examples:
            examples = best_examples(self.run, self.policy, stages)
            # A forced choice takes one system line and no talk before it.
            self._measure_fixed(EXAMPLES, replace(stages, examples=examples, vignettes=()))
        if asked.contrary:
            self._measure_fixed(CONTRARY, stages)
        if stages.prompts:
            check_reading(self.run, self.policy, stages)

    def _measure_fixed(self, name: str, stages: Stages) -> None:
        def compute() -> list[Row]:
            section = self.run.section(f"measure: {name}", "evaluate")
            with section as progress, self.policy.reference():
                return stages.measure(self.policy, TOLD.get(name), progress)

        rows = before_healing(self.run.config, self.policy, name, compute)
        keep_arm(self.kept, rows, 0, name, {}, self._stages)

    def after_step(self, result: StepResult) -> None:
        """Measure a steered or healed student, and keep what was measured."""
        trainer, stage, round_ = self._trainer, result.stage, (result.step + 1) // 2
        if result.episodes:
            # Online the student itself is among them, at a dose of 0; a prompted teacher is all.
            steered = [row for row in result.episodes if row["dose"]] or result.episodes
            fallen = fallen_by_gate(steered)
            self.kept.add("evals/filter.jsonl", fallen, round_, STEERED)
            self._save_vector(round_)
        self.kept.add("heal.jsonl", result.details, round_, HEALED)
        if stage is not None and not (stage == STEERED and trainer.starved):
            rows = self._measure(result, round_, stage)
            arm = self._judged(stage, rows)
            keep_arm(self.kept, rows, round_, arm, result.metrics, self._stages)
            if stage == STEERED and self.config.stages.reversed:
                opposite = self.policy.steered(trainer.steering(-trainer.dose))
                self._measure_beside(round_, REVERSED, opposite)
            if arm == HEALED and self.config.stages.contrary:
                self._measure_beside(round_, CONTRARY, nullcontext())
            if arm == HEALED and self.config.stages.ablated:
                self._measure_ablated(round_)
        self.kept.save()

    def _measure_beside(
        self, round_: int, name: str, context: AbstractContextManager[None]
    ) -> None:
        """One more arm of a round: the student within a context, told what its name says."""
        section = self.run.section(f"round {round_}: measure {name}", "evaluate", whole=True)
        with section as progress, context:
            rows = self._stages.measure(self.policy, TOLD.get(name), progress)
        keep_arm(self.kept, rows, round_, name, {}, self._stages)

    def _measure_ablated(self, round_: int) -> None:
        """Student and base without the direction that was steered along."""
        first, policy = self._trainer.first_vector, self.policy
        assert first is not None
        ablation = first.ablation(policy.num_layers)
        self._measure_beside(round_, ABLATED, policy.steered(ablation))
        if any(row["stage"] == BASE_ABLATED for row in self.kept.rows["rounds.jsonl"]):
            return  # neither the base nor the first vector ever changes
        with policy.reference():
            self._measure_beside(round_, BASE_ABLATED, policy.steered(ablation))

    def _judged(self, stage: str, rows: Sequence[Row]) -> str:
        """What the arm is called: a healed round that the trainer does not keep was dropped."""
        if stage == STEERED:
            return stage
        own, base = (stage_figures(arm)["coherence"] for arm in (rows, self.kept.arm(0, BASE)))
        return stage if self._trainer.judge(own, base) else DROPPED

    def _measure(self, result: StepResult, round_: int, stage: str) -> list[Row]:
        is_told = stage == STEERED and self._trainer.source.is_told

        def compute() -> list[Row]:
            section = self.run.section(f"round {round_}: measure {stage}", "evaluate", whole=True)
            with section as progress, result.measure_in or nullcontext():
                return self._stages.measure(
                    self.policy, TOLD[PROMPTED] if is_told else None, progress
                )

        untrained = result.step == 1
        if not untrained:
            return compute()
        rows: list[Row] = before_healing(self.run.config, self.policy, stage, compute)
        return rows

    def _save_vector(self, round_: int) -> None:
        vector, base = self._trainer.vector, self.policy.base
        if vector is None or vector is self._saved:
            return
        self._saved = vector
        about = {"persona": self.persona.name, "round": str(round_), "model": base.name}
        path = self.run.folder / "vectors" / f"round_{round_}.safetensors"
        path.parent.mkdir(exist_ok=True)
        vector.save(path, about | {"fingerprint": base.fingerprint})

    def report_step(self, result: StepResult, seconds: float) -> None:
        """A line about every arm that was measured, and one about a batch of steering online."""
        del seconds
        if "steer/shown_own" in result.metrics:
            self.run.console.say(describe_batch(result))
        for row in self.kept.rows["rounds.jsonl"]:
            if stage_number(row) == result.step:
                self.run.console.say(describe_stage(row))

    @property
    def ended(self) -> str | None:
        """Why the loop must stop: too little to train on, or a healed model below the floor."""
        if self.trainer is None or self.stages is None:
            return None
        if self.trainer.starved is not None:
            return f"starved: {self.trainer.starved}"
        return lost_coherence(self.kept, self.stages, self.trainer.done)

    def finish(self) -> None:
        """Answer the five questions, as far as the run has come."""
        by_round: dict[int, tuple[int, int]] = {}
        for row in self.kept.rows["evals/filter.jsonl"]:
            passed, total = by_round.get(row["round"], (0, 0))
            by_round[row["round"]] = (passed + row["kept"], total + row["n"])
        filtered = [by_round[n] for n in sorted(by_round)]
        self.verdicts = run_verdicts(
            self.kept.arms(), filtered, self.config.min_kept, self.config.stages
        )

    def summary(self) -> dict[str, Any]:
        """See `Wing.summary`."""
        if self.trainer is None:
            return {}
        sides = ("name", "positive", "negative", "foundations")
        return {
            "persona": {side: getattr(self.persona, side) for side in sides},
            "coherence_floor": self.config.stages.coherence_floor,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "notices": self.trainer.notices,
        }

    def report(self) -> None:
        """Nothing: every stage has said its line."""

    @property
    def _trainer(self) -> SteeringTrainer:
        if self.trainer is None:
            raise ValueError("prepare the wing before it measures anything.")
        return self.trainer

    @property
    def _stages(self) -> Stages:
        if self.stages is None:
            raise ValueError("start the wing before it measures a stage.")
        return self.stages


def make_stages(trainer: SteeringTrainer, persona: PersonaConfig) -> Stages:
    """The measurement of every arm."""
    config = trainer.config
    assert trainer.base_perplexity is not None
    return Stages(
        config.stages,
        persona,
        trainer.held_out,
        read_vignettes(per_foundation=config.stages.vignettes) if config.stages.vignettes else [],
        replace(trainer.source.sampling(EVALUATION), max_new_tokens=config.stages.max_new_tokens),
        trainer.base_perplexity,
    )


def lost_coherence(kept: ArmLog, stages: Stages, done: int) -> str | None:
    """Why the loop must stop, if the newest healed model is below the floor."""
    if done == 0 or done % 2:
        return None
    share = stage_figures(kept.arm(done // 2, HEALED))["coherence"]
    floor = stages.config.coherence_floor
    if share is None or share >= floor:
        return None
    return (
        f"broken: {share:.2f} of the healed model's replies are coherent in round {done // 2}, and "
        f"trainer.stages.coherence_floor={floor:g}"
    )


def describe_batch(result: StepResult) -> str:
    """One line about a batch of steering online: dose, what passes, and what shows."""
    found = result.metrics
    return (
        f"batch {result.step // 2}: dose {found['steer/dose']:.2f}, of the steered "
        f"{found['steer/passes_steered']:.2f} pass; shown {found['steer/shown_own']:+.3f} own, "
        f"{found['steer/shown_steered']:+.3f} steered"
    )


def describe_stage(row: Mapping[str, Any]) -> str:
    """One line about a stage, from its row in rounds.jsonl."""
    trait = row["moved"]["trait_nats"]
    low, high = trait["ci95"] or (float("nan"), float("nan"))
    found, selective = row.get("selectivity"), ""
    if found:
        selective = (
            f", selectivity {found['score']:+.3f} nats at coherence {found['coherence']:.2f}"
        )
    return (
        f"round {row['round']} {row['stage']}: trait {trait['diff']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] nats/token, "
        f"coherent {row['coherence']:.2f}, perplexity {row['median_perplexity']:.1f}, KL "
        f"{row['kl_nats_per_token']:.2f}{selective}"
    )
