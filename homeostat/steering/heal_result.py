"""What a round of healing did: a row for every step, and the figures of the round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from homeostat.config.steering import QUANTILE, BarrierConfig
from homeostat.steering.barriers import FixedControl, aggregates
from homeostat.types import Metrics

NAN = float("nan")
NOT_MEASURED = dict.fromkeys(("nll_grad_norm", "barrier_grad_norm", "gradient_ratio"))


@dataclass(frozen=True)
class HealResult:
    """What one round of healing did.

    Attributes:
        metrics: Of the round, by ``area/name``; NaN where there is nothing to measure.
        steps: A row for every optimiser step; None in it where nothing was measured.
        validation_nll: Nats per token before the first and after every epoch; empty if nothing was
            held out.
        notice: What the user should know, if anything.
    """

    metrics: Metrics
    steps: Sequence[Mapping[str, Any]]
    validation_nll: Sequence[float] = ()
    notice: str | None = None


def divergence_row(
    divergence_R: Float[Tensor, " R"] | None, kind: str, control: FixedControl | None
) -> dict[str, Any]:
    """What a minibatch's divergence was: under every aggregate, and under the barrier's.

    Args:
        divergence_R: Of its tokens, nats; None without a divergence.
        kind: The barrier's aggregate.
        control: Of the barrier; None where there is none in the loss.
    """
    if divergence_R is None:
        return {"divergence": None, "aggregates": {}, "fired": False, "coef": None, "tau": None}
    by_kind = aggregates(divergence_R)
    return {
        "divergence": by_kind[kind],
        "aggregates": by_kind,
        "fired": control is not None and by_kind[kind] > control.tau,
        "coef": None if control is None else control.coef,
        "tau": None if control is None else control.tau,
    }


def round_metrics(
    rows: Sequence[Mapping[str, Any]],
    validation_nll: Sequence[float],
    control: FixedControl | None,
    spectral_norm: float,
) -> Metrics:
    """Figures of a round by ``area/name``; what was learnt is read off the last epoch's rows.

    Args:
        rows: Of all steps.
        validation_nll: As in `HealResult`.
        control: Of the barrier as it is at the end; None without one.
        spectral_norm: Mean over the adapted layers at the end.
    """
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    return {
        "heal/nll": _column_mean(last, "nll"),
        "heal/validation_nll_before": validation_nll[0] if validation_nll else NAN,
        "heal/validation_nll": validation_nll[-1] if validation_nll else NAN,
        "heal/divergence": _column_mean(last, "divergence"),
        "heal/fired": NAN if control is None else _column_mean(rows, "fired"),
        "heal/tau": NAN if control is None else control.tau,
        "heal/coef": NAN if control is None else control.coef,
        "heal/gradient_ratio": NAN if control is None else _column_mean(rows, "gradient_ratio"),
        "heal/spectral_norm": spectral_norm,
        "heal/steps": float(len(rows)),
        "optim/lr": max(row["lr"] for row in rows),
        "optim/grad_norm": _column_mean(rows, "grad_norm"),
    }


def silent_barrier_notice(
    rows: Sequence[Mapping[str, Any]], barrier: BarrierConfig, control: FixedControl | None
) -> str | None:
    """That the barrier never fired, and how to make it; None if it did, or if there is none."""
    if control is None or any(row["fired"] for row in rows):
        return None
    quantile = barrier.tau == QUANTILE
    fix = "raise trainer.barrier.firing_rate" if quantile else "lower trainer.barrier.tau"
    return (
        f"the barrier never fired: D stayed below tau={rows[0]['tau']:.3g} (at most "
        f"{max(row['divergence'] for row in rows):.3g} nats), so this equals divergence=none; "
        f"{fix}."
    )


def _column_mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean over the rows that have the number; NaN if none has."""
    values = [row[key] for row in rows if row[key] is not None]
    return float(np.mean(values)) if values else NAN
