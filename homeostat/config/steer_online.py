"""Schema of steering online: a dataclass with types, units and limits; no torch import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from homeostat.config.checks import require, require_fraction, require_positive
from homeostat.config.steering import QUANTILE, SteeringConfig


@dataclass(kw_only=True)
class SteerOnlineConfig(SteeringConfig):
    """Steered completions as the exploration of a policy gradient; see `homeostat.steering.online`.

    A step is one batch, learnt from in minibatches. ``group`` completions answer each message,
    spread over ``shares`` of the dose, 0 being the student itself. A completion is paid
    ``shown_nats``, less ``failure_price`` where it falls through the filter. A token counts by how
    much likelier the unsteered student is to say it than the steered one that said it, at most
    ``max_importance``.

    The dose begins at ``dose.low`` and follows a set point: its logarithm rises by ``dose_lr``
    times the share of the steered completions that pass the filter less ``target_pass``; it stays
    between a twentieth of ``dose.low`` and ``dose.high``. What else ``dose`` says of searching is
    of rounds. Every ``measure_every`` steps, and after the last one, the student is measured.
    """

    schema: ClassVar[str] = "trainer/steer_online"
    amounts: ClassVar[tuple[str, str]] = ("updates", "completions")

    _target_: str = "homeostat.steering.online.SteerOnline"
    group: int
    shares: list[float]
    failure_price: float
    max_importance: float
    target_pass: float
    dose_lr: float
    measure_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            "trainer",
            max_importance=self.max_importance,
            dose_lr=self.dose_lr,
            measure_every=self.measure_every,
        )
        require_fraction("trainer", target_pass=self.target_pass)
        require(
            self.group >= 2 and self.batch_size % self.group == 0,
            f"trainer.group={self.group} must be at least 2 and divide "
            f"trainer.batch_size={self.batch_size}: completions of a group are compared.",
        )
        require(
            bool(self.shares) and all(math.isfinite(share) for share in self.shares),
            f"trainer.shares={self.shares} must be numbers, at least one.",
        )
        require(
            any(self.shares[: self.batch_size]),
            f"trainer.shares={self.shares} steer nothing of a batch of {self.batch_size}; give one "
            "that is not 0.",
        )
        require(
            self.failure_price >= 0,
            f"trainer.failure_price={self.failure_price} must be 0 or above.",
        )
        require(
            self.barrier.reference == "base" and self.barrier.tau != QUANTILE,
            f"trainer.barrier.reference={self.barrier.reference} and tau={self.barrier.tau}: "
            "without rounds there is only reference=base, and no pilot for tau=quantile.",
        )
        of_a_round = {
            "heal.validation": (self.heal.validation, 0),
            "heal.warmup": (self.heal.warmup, 0),
            "heal.schedule": (self.heal.schedule, "constant"),
            "dose.backtracks": (self.dose.backtracks, 0),
            "dose.shares": (list(self.dose.shares), [1.0]),
        }
        for name, (value, only) in of_a_round.items():
            require(
                value == only,
                f"trainer.{name}={value} belongs to rounds of healing, which trainer=steer_online "
                f"does not have; leave it at {only}.",
            )
        require(
            not self.stages.reversed,
            "trainer.stages.reversed=true measures a steered stage, and trainer=steer_online has "
            "none; leave it false.",
        )
