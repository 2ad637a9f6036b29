"""Schemas of steering and healing: dataclasses with types, units and limits; no torch import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.config.checks import (
    MOST,
    MOST_SAMPLES,
    MOST_TOKENS,
    require,
    require_at_most,
    require_fraction,
    require_one_of,
    require_positive,
)
from homeostat.config.filters import FilterConfig
from homeostat.config.trainers import TrainerConfig

VECTORS = ("mean_diff", "pca", "directional_ablation", "random")
DOSES = ("grid", "iso_kl", "survival")
POSITIONS = ("reply", "all")
DIVERGENCES = ("kl_rev", "kl_fwd", "none")
AGGREGATES = ("mean", "rmse", "p95", "max", "cvar")
REFERENCES = ("base", "prev", "last_good")
CONTROLS = ("fixed", "dual", "rate")
MOST_TURNS = 12  # of the talks that measure a stage
QUANTILE = "quantile"  # a tau that is read off a pilot
SCHEDULES = ("constant", "cosine")
TEACHERS = ("steered", "prompted")
ASKED = ("contexts", "persona")  # what completions answer
ADOPTED = ("all", "good")  # which healed rounds the student keeps


@dataclass(kw_only=True)
class VectorConfig:
    """The steering vector: kind, band of decoder blocks (fractions of the depth), contexts.

    ``contexts`` is how many of the contexts it is read from; ``contexts_path`` a JSONL file of the
    packaged file's shape instead of that file.
    """

    kind: str
    layers: list[float]
    contexts: int
    contexts_path: str | None

    def __post_init__(self) -> None:
        key = "trainer.vector"
        require_one_of(f"{key}.kind", self.kind, VECTORS)
        require(
            len(self.layers) == 2 and 0 <= self.layers[0] < self.layers[1] <= 1,
            f"{key}.layers={self.layers} must be two rising fractions of the depth, as [0.45,0.55]",
        )
        require(
            self.contexts >= 8,
            f"{key}.contexts={self.contexts} is too few for a direction that is not theirs; use at "
            "least 8, better 64.",
        )


@dataclass(kw_only=True)
class DoseConfig:
    """How hard to steer, and where: multiples of the raw vector, below 0 away from the trait.

    ``grid`` spreads the completions over ``values``, of which the middle one is measured as the
    steered stage. ``iso_kl`` bisects, on a logarithmic scale
    between ``low`` and ``high``, to the dose whose 95th-percentile KL from the unsteered model is
    ``target_kl`` nats; ``survival`` to the highest dose of which at least ``target_survival`` of
    the completions pass the filter. Each of ``probes`` steps looks at ``probe_size`` completions;
    the others are spread over ``shares`` of the dose that was found.

    ``positions`` are those that predict a token of the ``reply``, or ``all``, the prompt's too.
    ``half_life`` halves the dose every so many tokens of a completion; ``gate`` leaves positions
    alone whose cosine with the vector is above it; ``backtracks`` cuts a completion that fell
    through the filter at its last good position and goes on with half the dose, so many times.
    """

    kind: str
    values: list[float]
    low: float
    high: float
    probes: int
    probe_size: int
    target_kl: float
    target_survival: float
    shares: list[float]
    positions: str
    half_life: float | None
    gate: float | None
    backtracks: int

    def __post_init__(self) -> None:
        key = "trainer.dose"
        require_one_of(f"{key}.kind", self.kind, DOSES)
        require_one_of(f"{key}.positions", self.positions, POSITIONS)
        for name in ("values", "shares"):
            doses = getattr(self, name)
            require(bool(doses), f"{key}.{name} is empty; give at least one dose.")
            require(
                all(math.isfinite(dose) and dose for dose in doses),
                f"{key}.{name}={doses} must be numbers other than 0, which would not steer.",
            )
        require_positive(
            key,
            low=self.low,
            probes=self.probes,
            probe_size=self.probe_size,
            target_kl=self.target_kl,
        )
        require(self.high > self.low, f"{key}.high={self.high} must be above {key}.low={self.low}.")
        require_fraction(key, target_survival=self.target_survival)
        require(
            self.half_life is None or self.half_life > 0,
            f"{key}.half_life={self.half_life} must be above 0 tokens, or null for a steady dose.",
        )
        require(
            self.gate is None or -1 <= self.gate <= 1,
            f"{key}.gate={self.gate} is no cosine; use -1..1, or null for no gate.",
        )
        require(self.backtracks >= 0, f"{key}.backtracks={self.backtracks} must be 0 or above.")
        for name in ("probes", "probe_size", "backtracks"):
            require_at_most(key, MOST, **{name: getattr(self, name)})


@dataclass(kw_only=True)
class BarrierConfig:
    """coef * (1 + round)^coef_power * relu(D - tau), D the aggregated divergence of completions.

    ``tau: quantile`` reads tau off a pilot epoch without a barrier in the first round, so that the
    barrier would have fired in ``firing_rate`` of its steps, whatever the aggregate's scale.
    ``dual`` moves the coefficient by ``dual_lr`` times (D - tau) after every step, never below 0:
    D is then held at tau as at a set point. ``rate`` moves log tau by ``rate_lr`` times (fired -
    firing_rate), over all rounds: the barrier then does fire in ``firing_rate`` of the steps.

    ``reference`` is the ``base``, ``prev``, the student before this round, or ``last_good``, the
    student after the last round that was good (see `SteerHealConfig`).
    """

    divergence: str
    aggregate: str
    reference: str
    tau: Any
    firing_rate: float
    coef: float
    coef_power: float
    control: str
    dual_lr: float
    rate_lr: float

    def __post_init__(self) -> None:
        key = "trainer.barrier"
        require_one_of(f"{key}.divergence", self.divergence, DIVERGENCES)
        require_one_of(f"{key}.aggregate", self.aggregate, AGGREGATES)
        require_one_of(f"{key}.reference", self.reference, REFERENCES)
        require_one_of(f"{key}.control", self.control, CONTROLS)
        number = isinstance(self.tau, int | float) and not isinstance(self.tau, bool)
        require(
            self.tau == QUANTILE or (number and self.tau >= 0),
            f"{key}.tau={self.tau} must be 0 or above (nats), or quantile to read it off a pilot.",
        )
        require_fraction(key, firing_rate=self.firing_rate)
        require_positive(key, dual_lr=self.dual_lr, rate_lr=self.rate_lr)
        require(self.coef >= 0, f"{key}.coef={self.coef} must be 0 or above.")
        require(
            math.isfinite(self.coef_power),
            f"{key}.coef_power={self.coef_power} must be a number; below 0 the barrier loosens "
            "from round to round.",
        )
        require(
            self.control != "rate" or self.tau == QUANTILE or self.tau > 0,
            f"{key}.control=rate moves the logarithm of tau, so {key}.tau={self.tau} must be "
            "above 0, or quantile.",
        )


@dataclass(kw_only=True)
class HealConfig:
    """Distilling the kept completions into a fresh adapter.

    The learning rate rises from 0 over the share ``warmup`` of a round's steps and then stays
    (``constant``) or falls to 0 along half a ``cosine``.
    """

    epochs: int
    schedule: str
    warmup: float
    minibatch: int
    micro_batch_tokens: int
    weight_decay: float
    spectral_coef: float
    beta2: float
    validation: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        key = "trainer.heal"
        require_one_of(f"{key}.schedule", self.schedule, SCHEDULES)
        require(
            0 <= self.warmup < 1,
            f"{key}.warmup={self.warmup} is a share of the steps; use 0 or above and below 1.",
        )
        require_positive(
            key,
            epochs=self.epochs,
            minibatch=self.minibatch,
            micro_batch_tokens=self.micro_batch_tokens,
            max_grad_norm=self.max_grad_norm,
        )
        for name in ("weight_decay", "spectral_coef"):
            value = getattr(self, name)
            require(value >= 0, f"{key}.{name}={value} must be 0 or above.")
        require(0 < self.beta2 < 1, f"{key}.beta2={self.beta2} must lie between 0 and 1.")
        require(
            0 <= self.validation < 1,
            f"{key}.validation={self.validation} must be 0 or above and below 1.",
        )


@dataclass(kw_only=True)
class StagesConfig:
    """How every stage is measured, on contexts that are never steered or trained on.

    A model below ``coherence_floor``, the share of its replies that pass the ``gates`` of
    coherence, is broken: the loop stops, and no verdict may call it a success. The gates are apart
    from the trainer's filter, so that a looser filter makes no model look more coherent.
    ``prompts`` of the persona's held-out prompts are answered, to see whether the trait shows.
    ``lines`` are system lines with ``{persona}`` in them, of which, with the persona's own, the one
    that makes most of the trait show on the persona's prompts tells the prompted base; none: the
    persona's own.

    With ``examples`` the prompted base is measured a second time, with so many of its own replies
    before the question. ``turns`` is how long the talks are that begin with a held-out prompt.

    With ``reversed`` the student is also measured under the opposite of the round's dose, with
    ``contrary`` base and healed student when a system line tells them to be the persona's opposite,
    with ``ablated`` both without their component along the first round's vector.
    """

    contexts: int
    prompts: int
    lines: list[str]
    examples: int
    turns: int
    reversed: bool
    contrary: bool
    ablated: bool
    max_new_tokens: int
    vignettes: int
    coherence_floor: float
    bootstrap_samples: int
    gates: FilterConfig

    def __post_init__(self) -> None:
        key = "trainer.stages"
        require_positive(
            key, max_new_tokens=self.max_new_tokens, bootstrap_samples=self.bootstrap_samples
        )
        require_at_most(key, MOST_SAMPLES, bootstrap_samples=self.bootstrap_samples)
        require_at_most(key, MOST_TOKENS, max_new_tokens=self.max_new_tokens)
        for line in self.lines:
            require(
                "{persona}" in line,
                f"{key}.lines: {line!r} has no {{persona}}, so it tells the model nothing of it.",
            )
        require(self.contexts >= 4, f"{key}.contexts={self.contexts} is too few; use at least 4.")
        for name in ("vignettes", "prompts", "examples"):
            value = getattr(self, name)
            require(value >= 0, f"{key}.{name}={value} must be 0 or above.")
        require(
            1 <= self.turns <= MOST_TURNS,
            f"{key}.turns={self.turns} must be 1 to {MOST_TURNS}; 1 measures single replies only.",
        )
        require_fraction(key, coherence_floor=self.coherence_floor)


@dataclass(kw_only=True)
class SteeringConfig(TrainerConfig):
    """What every trainer has that learns from steered completions; a batch is that many.

    Completions answer neutral ``contexts``, or the ``persona``'s prompts (``asked``), and are drawn
    from the ``top_k`` likeliest tokens and of these from the likeliest that reach ``top_p``.
    ``min_kept`` is the least share of them that should pass the filter.
    """

    wing: ClassVar[str] = "steering"
    needs_persona: ClassVar[bool] = True
    amounts: ClassVar[tuple[str, str]] = ("rounds", "completions")
    micro_batch_key: ClassVar[str | None] = "trainer.heal.micro_batch_tokens"

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    asked: str
    min_kept: float
    vector: VectorConfig
    dose: DoseConfig
    filter: FilterConfig
    heal: HealConfig
    barrier: BarrierConfig
    stages: StagesConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            "trainer",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        require_at_most("trainer", MOST_TOKENS, max_new_tokens=self.max_new_tokens)
        require_fraction("trainer", min_kept=self.min_kept)
        require_one_of("trainer.asked", self.asked, ASKED)
        require(
            0 < self.top_p <= 1,
            f"trainer.top_p={self.top_p} must be above 0 and at most 1, where 1 keeps all tokens.",
        )
        _require_count("top_k", self.top_k)


@dataclass(kw_only=True)
class SteerHealConfig(SteeringConfig):
    """Steer, filter, heal, bake, repeat; see `homeostat.steering.loop`. A step is one round.

    With a ``target`` further batches are sampled until so many have passed the filter,
    ``most_batches`` at most. A round of which less than ``min_kept`` of the target, or without one
    of a batch, passes is not trained on: the run ends as starved. The ``teacher`` that completions
    come from is the student when it is ``steered``, or, as a control for mere distillation, when it
    is ``prompted`` to be the persona and not steered at all.

    A healed round is good if the share of its replies that are coherent is at least ``good`` of the
    base's. With ``adopt: good`` any other is dropped, and the loop goes on from the last good one.
    """

    schema: ClassVar[str] = "trainer/steer_heal"

    _target_: str = "homeostat.steering.loop.SteerHeal"
    teacher: str
    target: int | None
    most_batches: int
    good: float
    adopt: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction("trainer", good=self.good)
        require_one_of("trainer.teacher", self.teacher, TEACHERS)
        require_one_of("trainer.adopt", self.adopt, ADOPTED)
        require(
            self.teacher == "steered" or not self.stages.reversed,
            "trainer.stages.reversed=true measures the opposite of a dose, and "
            "trainer.teacher=prompted has none; use one of them.",
        )
        _require_count("target", self.target)
        require_positive("trainer", most_batches=self.most_batches)
        require_at_most("trainer", MOST, most_batches=self.most_batches)


def _require_count(name: str, value: int | None) -> None:
    require(
        value is None or value >= 1,
        f"trainer.{name}={value} must be at least 1, or null to do without.",
    )
