"""Schemas of steering and healing: dataclasses with types, units and limits; no torch import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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
DIVERGENCES = ("kl_rev", "kl_fwd", "none")
AGGREGATES = ("mean", "rmse", "p95", "max", "cvar")
REFERENCES = ("base", "prev")
CONTROLS = ("fixed", "dual")
QUANTILE = "quantile"  # a tau that is read off a pilot


@dataclass
class ProbePair:
    """A question and two replies of equal length, one of either side of the trait."""

    question: str
    positive: str
    negative: str


@dataclass(kw_only=True)
class PersonaConfig:
    """Two direct opposites on one axis, and how the trait shows.

    ``prompt`` puts either side into a system turn. ``narration`` holds regular expressions of
    talking about the trait instead of showing it, matched against the lower-case reply.
    ``diary`` is the question that every stage is asked.
    """

    schema: ClassVar[str] = "persona"
    name: str
    positive: str
    negative: str
    prompt: str = "You are {persona}."
    narration: list[str] = field(default_factory=list)
    probe_pairs: list[ProbePair] = field(default_factory=list)
    diary: str

    def __post_init__(self) -> None:
        require(
            self.positive.strip().lower() != self.negative.strip().lower(),
            f"persona.positive and persona.negative of {self.name} are equal, so nothing points "
            "from one to the other; give direct opposites.",
        )
        require(
            "{persona}" in self.prompt,
            f"persona.prompt={self.prompt!r} has no {{persona}}, so both sides would be the same.",
        )
        for pattern in self.narration:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"persona.narration: {pattern!r} is no regular expression ({error}); mend it, "
                    "or put a backslash before a sign that is meant as it stands."
                ) from error
        require(
            len(self.probe_pairs) >= 2,
            f"persona.probe_pairs has {len(self.probe_pairs)} entries, which give no interval; "
            "give at least 2.",
        )


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
    """How hard to steer: multiples of the raw vector.

    ``grid`` spreads the completions over ``values``, of which the middle one is measured as the
    steered stage. ``iso_kl`` bisects, on a logarithmic scale
    between ``low`` and ``high``, to the dose whose 95th-percentile KL from the unsteered model is
    ``target_kl`` nats; ``survival`` to the highest dose of which at least ``target_survival`` of
    the completions pass the filter. Each of ``probes`` steps looks at ``probe_size`` completions.

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
    half_life: float | None
    gate: float | None
    backtracks: int

    def __post_init__(self) -> None:
        key = "trainer.dose"
        require_one_of(f"{key}.kind", self.kind, DOSES)
        require(bool(self.values), f"{key}.values is empty; give at least one dose.")
        for value in self.values:
            require_positive(key, values=value)
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
    D is then held at tau as at a set point.
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
        require_positive(key, dual_lr=self.dual_lr)
        for name in ("coef", "coef_power"):
            value = getattr(self, name)
            require(value >= 0, f"{key}.{name}={value} must be 0 or above.")


@dataclass(kw_only=True)
class HealConfig:
    """Distilling the kept completions into a fresh adapter."""

    epochs: int
    minibatch: int
    micro_batch_tokens: int
    weight_decay: float
    spectral_coef: float
    beta2: float
    validation: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        key = "trainer.heal"
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
    """

    contexts: int
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
        require(self.contexts >= 4, f"{key}.contexts={self.contexts} is too few; use at least 4.")
        require(self.vignettes >= 0, f"{key}.vignettes={self.vignettes} must be 0 or above.")
        require_fraction(key, coherence_floor=self.coherence_floor)


@dataclass(kw_only=True)
class SteerHealConfig(TrainerConfig):
    """Steer, filter, heal, bake, repeat; see `homeostat.steering.loop`.

    A step is one round, a batch that many steered completions. A round of which less than
    ``min_kept`` of a batch passes the filter is not trained on: the run ends as starved.
    """

    schema: ClassVar[str] = "trainer/steer_heal"
    wing: ClassVar[str] = "steering"
    needs_persona: ClassVar[bool] = True
    micro_batch_key: ClassVar[str | None] = "trainer.heal.micro_batch_tokens"

    _target_: str = "homeostat.steering.loop.SteerHeal"
    max_new_tokens: int
    temperature: float
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
