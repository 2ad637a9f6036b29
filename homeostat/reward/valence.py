"""Valence: how far the signals are from their set points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from homeostat.config.reward import SetPointConfig
from homeostat.errors import HomeostatError
from homeostat.signals.calibration import Calibration
from homeostat.types import SignalTable, Valence

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class SetPoint:
    """A resolved set point: numbers only, in the signal's own unit.

    Attributes:
        weight: >= 0.
        setpoint: Where the signal should stay.
        tolerance: > 0; a signal this far off costs ``weight``.
        automatic: Which of ``setpoint`` and ``tolerance`` were measured on the base model.
        side: Which deviations cost: ``both``, only ``above`` or only ``below`` the set point.
        dead_zone: >= 0; a deviation costs only by what it exceeds this.
        transform: ``log`` compares logarithms; tolerance and dead zone are then in nats.
    """

    weight: float
    setpoint: float
    tolerance: float
    automatic: tuple[str, ...] = ()
    side: str = "both"
    dead_zone: float = 0.0
    transform: str = "none"

    def distance(self, x: Array) -> Array:
        """How far ``x`` is off, in tolerances, >= 0; NaN where ``x`` is missing.

        Of tensors it carries gradients, which are 0 where nothing costs.
        """
        if self.transform == "log":
            with np.errstate(divide="ignore"):  # log 0 is infinitely far off, and said so
                log_x = torch.log(x) if isinstance(x, Tensor) else np.log(x)
            off = log_x - np.log(self.setpoint)
        else:
            off = x - self.setpoint
        counted = {"both": abs(off), "above": off, "below": -off}[self.side]
        distance: Array = (counted - self.dead_zone).clip(min=0) / self.tolerance
        return distance

    def valence(self, x: Array) -> Array:
        """What the signal adds to the valence where it is ``x``, <= 0."""
        return -self.weight * self.distance(x)

    def as_read(self, offset: float, slope: float) -> SetPoint:
        """The same for a signal that shows ``offset + slope x`` where ``x`` is meant; slope > 0."""
        return replace(
            self,
            setpoint=offset + slope * self.setpoint,
            tolerance=slope * self.tolerance,
            dead_zone=slope * self.dead_zone,
        )


def resolve(config: Mapping[str, SetPointConfig], calibration: Calibration) -> dict[str, SetPoint]:
    """Set points with a weight above 0, ``auto`` replaced by what the base model showed."""
    return {
        name: resolve_one(name, point, calibration)
        for name, point in config.items()
        if point.weight > 0
    }


def resolve_one(name: str, point: SetPointConfig, calibration: Calibration) -> SetPoint:
    """One set point; a ``min_tolerance`` applies to an automatic tolerance only.

    Raises:
        HomeostatError: A value is automatic, but the base model never showed the signal.
    """
    automatic = tuple(k for k in ("setpoint", "tolerance") if getattr(point, k) == "auto")
    if automatic and not calibration.n[name]:
        raise HomeostatError(
            f"{name} could not be measured on any of the base model's turns, so it has no "
            f"automatic set point; give reward.set_points.{name} a setpoint and a tolerance, or "
            "weight=0."
        )
    return SetPoint(
        weight=float(point.weight),
        setpoint=calibration.median(name) if "setpoint" in automatic else float(point.setpoint),
        tolerance=max(calibration.spread(name, point.transform), point.min_tolerance)
        if "tolerance" in automatic
        else float(point.tolerance),
        automatic=automatic,
        side=point.side,
        dead_zone=float(point.dead_zone),
        transform=point.transform,
    )


def valence(table: SignalTable, set_points: Mapping[str, SetPoint]) -> Valence:
    """Valence = - sum_i w_i d_i for every row of the table, d_i the distance in tolerances.

    For a two-sided set point without a dead zone d_i = |x_i - setpoint_i| / tolerance_i. A row in
    which a weighted signal is missing has no valence (NaN): a missing signal is neither perfect nor
    bad.

    Source: the project's founding document, "Valence function". **Differs:** sides, dead zones
    and logarithms.
    """
    names = tuple(set_points)
    terms_NS = np.zeros((len(table.values), len(names)))
    for column, (name, point) in enumerate(set_points.items()):
        terms_NS[:, column] = point.valence(table.column(name))
    return Valence(names, terms_NS.sum(axis=1), terms_NS)
