"""Schemas of the signals: dataclasses with types, units and limits; no torch import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.config.checks import (
    MOST,
    require,
    require_at_most,
    require_fraction,
    require_one_of,
    require_positive,
)

INTRINSIC_SIGNALS = (
    "entropy",
    "self_perplexity",
    "base_perplexity",
    "activation_norm",
    "repetition",
    "self_certainty",
)
# Of these, with a reply's tokens given, what the policy's weights still decide, and smoothly.
PATHWISE_SIGNALS = ("entropy", "activation_norm", "self_certainty")
POOLINGS = ("mean", "last", "both")
AFFECTS = ("sentiment", "curiosity", "frustration", "confusion", "boredom")


@dataclass(kw_only=True)
class IntrinsicConfig:
    """Which variables the model keeps about itself; ``norm_layers`` are fractions of the depth."""

    schema: ClassVar[str] = "signals/intrinsic"
    names: list[str]
    norm_layers: list[float]

    def __post_init__(self) -> None:
        for name in self.names:
            require_one_of("signals.intrinsic.names", name, INTRINSIC_SIGNALS)
        for fraction in self.norm_layers:
            require_fraction("signals.intrinsic", norm_layers=fraction)
        require(bool(self.norm_layers), "signals.intrinsic.norm_layers is empty; name one layer.")


@dataclass(kw_only=True)
class AffectConfig:
    """Frozen linear probes that read the user's affect from hidden states.

    ``corpus`` and ``heldout`` are a JSONL or CSV file or the hub id of GoEmotions; null is the
    packaged corpus, and no held-out file. ``require`` is the verdict that the reward asks of a
    probe. After training a probe is stale when its AUROC has dropped by ``stale_auroc_drop`` or its
    reading has moved by ``stale_distance`` on average.
    """

    schema: ClassVar[str] = "signals/affect"
    names: list[str]
    corpus: str | None
    heldout: str | None
    layers: list[float]
    pooling: list[str]
    regularisation: list[float]
    perception: str
    require: str
    stale_auroc_drop: float
    stale_distance: float

    def __post_init__(self) -> None:
        key = "signals.affect"
        for name in self.names:
            require_one_of(f"{key}.names", name, AFFECTS)
        for pooling in self.pooling:
            require_one_of(f"{key}.pooling", pooling, POOLINGS)
        for fraction in self.layers:
            require_fraction(key, layers=fraction)
        for strength in self.regularisation:
            require_positive(key, regularisation=strength)
        for candidates in ("names", "layers", "pooling", "regularisation"):
            require(bool(getattr(self, candidates)), f"{key}.{candidates} is empty; name one.")
        require_one_of(f"{key}.perception", self.perception, ("reference", "policy"))
        require_one_of(f"{key}.require", self.require, ("trusted", "weak", "any"))
        require_positive(
            key, stale_auroc_drop=self.stale_auroc_drop, stale_distance=self.stale_distance
        )


@dataclass(kw_only=True)
class SignalsConfig:
    """Both families of signals; leave one out with ``signals=[intrinsic]`` or ``[affect]``.

    ``own`` maps a name to ``{_target_: package.function, ...}``: a callable that gets a
    conversation, its trace and the other keys, and returns one number per assistant turn.
    Automatic set points are measured on ``calibration_episodes`` conversations of the base model,
    sampled at ``calibration_temperature``: below 1, because the set point is to be the base model
    when it is coherent, and training samples at 1. ``validation_replies`` says how many replies of
    every failure trainer=none makes. ``author_groups`` limits how much of the packaged probe corpus
    is used; null is all of it. ``cache`` keeps hidden states, probes and base measurements.
    """

    intrinsic: IntrinsicConfig | None = None
    affect: AffectConfig | None = None
    own: dict[str, Any] = field(default_factory=dict)
    author_groups: int | None
    calibration_episodes: int
    calibration_temperature: float
    validation_replies: int
    cache: bool

    def __post_init__(self) -> None:
        require_positive(
            "signals",
            calibration_temperature=self.calibration_temperature,
            validation_replies=self.validation_replies,
        )
        require_at_most(
            "signals",
            MOST,
            validation_replies=self.validation_replies,
            calibration_episodes=self.calibration_episodes,
        )
        require(
            self.author_groups is None or self.author_groups >= 10,
            f"signals.author_groups={self.author_groups} is too few to split into training, "
            "validation and test; use at least 10, or null for all.",
        )
        require(
            self.calibration_episodes >= 4,
            f"signals.calibration_episodes={self.calibration_episodes} is too few for a median "
            "and quartiles; use at least 4.",
        )
        for name, signal in self.own.items():
            _require_own(name, signal)

    @property
    def names(self) -> tuple[str, ...]:
        """All signals that this run measures, in the order of the signal table."""
        intrinsic = self.intrinsic.names if self.intrinsic else []
        return (*intrinsic, *(self.affect.names if self.affect else []), *self.own)


def _require_own(name: str, signal: Any) -> None:
    require(
        re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None,
        f"signals.own.{name} must be called by small letters, digits and _, since it names a "
        "figure of every file.",
    )
    packaged = (*INTRINSIC_SIGNALS, *AFFECTS)
    require(
        name not in packaged,
        f"signals.own.{name} has the name of a packaged signal; call it anything but "
        f"{', '.join(packaged)}.",
    )
    require(
        isinstance(signal, dict) and "_target_" in signal,
        f"signals.own.{name} needs _target_, the dotted path of a callable.",
    )
