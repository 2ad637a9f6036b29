"""Valence: how far the signals are from their set points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from homeostat.config import SetPointConfig
from homeostat.signals.calibration import Calibration
from homeostat.types import SignalTable, Valence


@dataclass(frozen=True)
class SetPoint:
    """A resolved set point: numbers only, in the signal's own unit.

    Attributes:
        weight: >= 0.
        setpoint: Where the signal should stay.
        tolerance: > 0; a signal this far off costs ``weight``.
        automatic: Which of ``setpoint`` and ``tolerance`` were measured on the base model.
    """

    weight: float
    setpoint: float
    tolerance: float
    automatic: tuple[str, ...] = ()


def resolve(config: Mapping[str, SetPointConfig], calibration: Calibration) -> dict[str, SetPoint]:
    """Set points with a weight above 0, ``auto`` replaced by what the base model showed.

    A ``min_tolerance`` applies to automatic tolerances only.
    """
    resolved = {}
    for name, point in config.items():
        if point.weight == 0:
            continue
        automatic = tuple(k for k in ("setpoint", "tolerance") if getattr(point, k) == "auto")
        spread = max(calibration.spread(name), point.min_tolerance)
        resolved[name] = SetPoint(
            weight=float(point.weight),
            setpoint=calibration.median(name) if "setpoint" in automatic else float(point.setpoint),
            tolerance=spread if "tolerance" in automatic else float(point.tolerance),
            automatic=automatic,
        )
    return resolved


def valence(table: SignalTable, set_points: Mapping[str, SetPoint]) -> Valence:
    """Valence = - sum_i w_i |x_i - setpoint_i| / tolerance_i for every row of the table.

    A row in which a weighted signal is missing has no valence (NaN): a missing signal is neither
    perfect nor bad.

    Source: the project's founding document, "Valence function".
    """
    names = tuple(set_points)
    points = set_points.values()
    x_NS = (
        np.stack([table.column(name) for name in names], axis=1)
        if names
        else np.zeros((len(table.values), 0))
    )
    weight_S = np.array([p.weight for p in points])
    setpoint_S = np.array([p.setpoint for p in points])
    tolerance_S = np.array([p.tolerance for p in points])
    terms_NS = -weight_S * np.abs(x_NS - setpoint_S) / tolerance_S
    return Valence(names, terms_NS.sum(axis=1), terms_NS)
