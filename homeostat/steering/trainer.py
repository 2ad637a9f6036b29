"""What every trainer has that learns from steered completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from homeostat.config.persona import PersonaConfig
from homeostat.config.steering import QUANTILE, SteeringConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.hooks import Steering
from homeostat.rollout.generate import BATCH
from homeostat.rollout.replies import reply_ids
from homeostat.steering.bank import Bank, Source
from homeostat.steering.completions import Completion
from homeostat.steering.vectors import (
    Context,
    PersonaVector,
    extract,
    read_contexts,
    spread,
    student_shift,
)
from homeostat.timing import Stopwatch
from homeostat.types import Conversation, Footprint, Metrics, Progress, StepResult, silent

# Stages at which a student is measured.
STEERED, HEALED = "steered", "healed"
DROPPED = "dropped"  # a healed round that was not good enough to be kept
# Of a chunk of logits in the backward pass: those of a loss, the reference's log-probabilities and
# the difference of the two.
DIVERGENCE_COPIES = 7
# Of a next-token distribution: logits, probabilities, running sum; for a nucleus also what is
# sorted with its places (of twice the size), its running sum, and what came before.
PLAIN_COPIES, NUCLEUS_COPIES = 3, 8


def share_contexts(
    config: SteeringConfig, persona: PersonaConfig
) -> tuple[list[Context], list[Context], list[Context]]:
    """The contexts that measure, those that the vector is read from, and those to be steered on.

    Raises:
        HomeostatError: There are too few of them, or of the persona's prompts.
    """
    contexts = spread(read_contexts(config.vector.contexts_path), seed=0)
    measured, read = config.stages.contexts, config.vector.contexts
    steered_on = contexts[measured + read :]
    invited = config.asked == "persona"
    if invited:
        steered_on = [
            Context(f"{persona.name}-{number:02d}", "persona", text)
            for number, text in enumerate(persona.prompts)
        ]
    if invited and len(steered_on) < 8:
        raise HomeostatError(
            f"persona {persona.name} has {len(steered_on)} prompts and trainer.asked=persona needs "
            "8 at least; give more by persona.prompts, or use trainer.asked=contexts."
        )
    if len(contexts) < measured + read or len(steered_on) < min(config.batch_size, 8):
        raise HomeostatError(
            f"{len(contexts)} contexts are too few: trainer.stages.contexts={measured} are for "
            f"measuring and trainer.vector.contexts={read} for the vector; lower these, or give "
            "more by trainer.vector.contexts_path."
        )
    return contexts[:measured], contexts[measured : measured + read], steered_on


class SteeringTrainer:
    """Steers with a persona vector and learns from what passes the filter; see its subclasses.

    Attributes:
        config: Of the trainer.
        held_out: Contexts that are never steered or trained on.
        base_perplexity: Median perplexity of the base's own replies; None before the first step.
        done: Stages that are behind it, two to a round.
        base_vector: The mean difference under the base, where it has been read; None: not yet.
        vector: That is steered with now.
        first_vector: Of the first round.
        dose: That is steered with now.
        tau: Threshold of the barrier, nats; None where a pilot is to find it.
        starved: Why it ended early, if it did.
        notices: What the user should know so far.
    """

    def __init__(
        self,
        config: SteeringConfig,
        *,
        policy: Policy,
        persona: PersonaConfig,
        seed: int,
        watch: Stopwatch,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.policy = policy
        self.persona = persona
        self.seed = seed
        self.watch = watch
        self.progress = progress
        self.held_out, self.read_from, steered_on = share_contexts(config, persona)
        self.source = Source(config, policy, persona, steered_on, seed, watch)
        self.done = 0
        self.base_perplexity: float | None = None
        self.base_vector: PersonaVector | None = None
        self.first_vector: PersonaVector | None = None
        self.vector: PersonaVector | None = None
        self.dose = 0.0
        self.tau = None if config.barrier.tau == QUANTILE else float(config.barrier.tau)
        self.starved: str | None = None
        self.notices: list[str] = []

    def steps(self) -> Iterator[StepResult]:
        """Learn, stage by stage; may be left at any yield."""
        raise NotImplementedError

    @property
    def coming(self) -> str:
        """What comes next."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether no stage is left."""
        return self.done >= 2 * self.config.max_steps or self.starved is not None

    @classmethod
    def footprint(cls, config: SteeringConfig, length: int) -> Footprint:
        """What a step will hold, for prompt and completion of ``length`` tokens together."""
        tokens = config.heal.minibatch * length  # an aggregate needs its whole minibatch at once
        stages, prompt = config.stages, length - config.max_new_tokens
        # What measures a stage is more rows, but shorter ones: as many as would hold as much.
        said = prompt + stages.max_new_tokens
        # A row holds the examples before its question, and the turns before its last.
        asked = min(stages.contexts + 1 + stages.prompts, BATCH) * (1 + stages.examples) * said
        talks = min(stages.prompts, BATCH) * (stages.turns + stages.examples) * said
        measured = max(asked, talks) / length
        return Footprint(
            rows=max(min(config.batch_size, BATCH), math.ceil(measured)),
            length=length,
            gradient_tokens=tokens,
            logit_copies=DIVERGENCE_COPIES,
            recomputes=config.gradient_checkpointing or tokens > config.heal.micro_batch_tokens,
            sampling_copies=PLAIN_COPIES if config.top_p == 1 else NUCLEUS_COPIES,
        )

    def steering(self, dose: float) -> Steering:
        """The vector of the round under way at a dose."""
        if self.vector is None:
            raise ValueError("no round has begun, so there is no vector yet.")
        return self.vector.steering(dose, self.config.dose)

    def read_vector(self) -> PersonaVector:
        """The persona's vector under the policy as it is, which before any learning is the base."""
        config, known = self.config.vector, self.base_vector
        if known is not None and not self.done and config.kind == known.kind:
            return known
        with self.watch("vector"):
            return extract(
                self.policy, self.persona, self.read_from, config, self.seed, self.progress
            )

    def tell(self, line: str) -> None:
        """Let a system line with ``{persona}`` in it be what tells a teacher, where one is told."""
        persona = replace(self.persona, prompt=line)
        self.source = replace(self.source, persona=persona)

    def measure_base(self) -> float:
        """Median perplexity of the base's own replies."""
        return self.source.base_perplexity(self.progress)

    def records(self, bank: Bank, step: int) -> list[dict[str, Any]]:
        """The completions as they go to episodes.jsonl; a dose of 0 is the student itself."""
        return [
            {
                "step": step,
                "stage": STEERED,
                "dose": completion.dose,
                "failed": list(failed),
                "prompt": talk.unprompted.turns[0].text,
                "text": completion.text,
            }
            for completion, failed, talk in zip(
                bank.completions, bank.verdicts, bank.talks, strict=True
            )
        ]

    def completion(self, talk: Conversation) -> Completion:
        """The last reply of a conversation, after the message without any system line."""
        prompt = self.policy.encode(Conversation(talk.unprompted.turns[:-1])).ids
        return Completion(tuple(prompt), reply_ids(talk))

    def internal(self) -> Metrics:
        """How far training has moved the student itself along the first round's vector."""
        first = self.first_vector
        assert first is not None
        with self.watch("vector"):
            shift = student_shift(self.policy, self.held_out, sorted(first.vectors))
        return {"heal/shift_cosine": first.cosine(shift), "heal/shift_dose": first.dose_of(shift)}

    def judge(self, coherence: float | None, of_base: float | None) -> bool:
        """Take in how coherent the student is; whether what it has learnt last is kept.

        Args:
            coherence: Share of its replies that are; None if that is not known.
            of_base: The same share of the base's.
        """
        del coherence, of_base
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that the stages still to come depend on, beside the adapters."""
        vectors = (self.first_vector, self.vector)
        return {
            "done": self.done,
            "base_perplexity": self.base_perplexity,
            "dose": self.dose,
            "tau": self.tau,
            "starved": self.starved,
            "notices": self.notices,
            "vectors": [None if vector is None else vector.state_dict() for vector in vectors],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the stage that `state_dict` was taken at."""
        self.done = int(state["done"])
        self.base_perplexity = state["base_perplexity"]
        self.dose = float(state["dose"])
        self.tau = state["tau"]
        self.starved = state["starved"]
        self.notices = list(state["notices"])
        self.first_vector, self.vector = (
            None if stored is None else PersonaVector(**stored) for stored in state["vectors"]
        )
