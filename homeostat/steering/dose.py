"""Searches for a dose, on a logarithmic scale; each look at a dose costs completions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        dose: The dose to use; None if even the lowest fails.
        tried: Every dose looked at, and what was seen there.
    """

    dose: float | None
    tried: list[tuple[float, float]]


def bisect_dose(
    low: float, high: float, probes: int, is_acceptable: Callable[[float], bool]
) -> Search:
    """The highest acceptable dose between two.

    The middle comes first, so that ``probes`` looks narrow the interval to 2^-probes of its
    logarithm. Acceptable doses are taken to lie below unacceptable ones.

    Args:
        low: Looked at only if nothing above it was acceptable.
        high: Never looked at, and approached while all is acceptable.
        probes: Looks, at least 1.
        is_acceptable: Looks at a dose.
    """
    tried: list[tuple[float, float]] = []
    bottom, top, best = math.log(low), math.log(high), None
    for _ in range(probes):
        dose = math.exp((bottom + top) / 2)
        accepted = is_acceptable(dose)
        tried.append((dose, float(accepted)))
        if accepted:
            bottom, best = math.log(dose), dose
        else:
            top = math.log(dose)
    if best is None:
        accepted = is_acceptable(low)
        tried.append((low, float(accepted)))
        best = low if accepted else None
    return Search(best, tried)


def bisect_to(
    low: float, high: float, probes: int, measure: Callable[[float], float], target: float
) -> Search:
    """The dose looked at whose measure is nearest to a target; the measure rises with the dose."""
    tried: list[tuple[float, float]] = []
    bottom, top = math.log(low), math.log(high)
    for _ in range(probes):
        dose = math.exp((bottom + top) / 2)
        value = measure(dose)
        tried.append((dose, value))
        if value < target:
            bottom = math.log(dose)
        else:
            top = math.log(dose)
    nearest = min(tried, key=lambda pair: abs(pair[1] - target))
    return Search(nearest[0], tried)
