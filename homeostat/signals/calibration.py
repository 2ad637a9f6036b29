"""Set points that follow from the base model: medians and spreads over its own conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from homeostat.signals.reader import SignalReader
from homeostat.types import Episode, Progress, Reading, silent

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IQR_OF_UNIT_NORMAL = 1.349
RESAMPLES = 1000


@dataclass(frozen=True)
class Calibration:
    """Quantiles of every signal on the base model, in the signals' own units.

    Attributes:
        quantiles: Signal to its values at `QUANTILES`.
        n: Signal to the number of turns that had it.
        values: Signal to its value on each of those turns.
        base_norms: Mean residual-stream norm per norm layer, activation units.
    """

    quantiles: dict[str, tuple[float, ...]]
    n: dict[str, int]
    values: dict[str, list[float]]
    base_norms: Float[np.ndarray, " L"]

    @classmethod
    def of(
        cls, values: dict[str, list[float]], base_norms: Sequence[float] | np.ndarray
    ) -> Calibration:
        """From the values of every signal; quantiles of a signal without any are NaN."""
        quantiles = {
            name: tuple(np.quantile(of_turns, QUANTILES).tolist())
            if of_turns
            else (float("nan"),) * len(QUANTILES)
            for name, of_turns in values.items()
        }
        n = {name: len(of_turns) for name, of_turns in values.items()}
        return cls(quantiles, n, values, np.asarray(base_norms, dtype=np.float64))

    def median(self, name: str) -> float:
        """The automatic set point."""
        return self.quantiles[name][2]

    def spread(self, name: str, transform: str = "none") -> float:
        """The automatic tolerance: IQR / 1.349, the standard deviation if the signal is normal.

        Args:
            name: Of the signal.
            transform: ``log`` for the spread of its logarithm, nats.
        """
        _, low, _, high, _ = self.quantiles[name]
        if transform == "log":
            low, high = np.log([low, high]).tolist()
        return (high - low) / IQR_OF_UNIT_NORMAL

    def uncertainty(self, name: str, transform: str = "none") -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals of the automatic set point and tolerance; empty without values.

        Turns are resampled, as if they were independent: those of one conversation are not quite,
        so the intervals are, if anything, too narrow.
        """
        values = np.array(self.values[name])
        if not len(values):
            return {}
        rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
        low, middle, high = np.quantile(values[rows], (0.25, 0.5, 0.75), axis=1)
        if transform == "log":
            low, high = np.log(low), np.log(high)
        spread = (high - low) / IQR_OF_UNIT_NORMAL
        return {
            key: tuple(np.percentile(drawn, (2.5, 97.5)).tolist())
            for key, drawn in (("setpoint_ci95", middle), ("tolerance_ci95", spread))
        }


def calibrate(
    reader: SignalReader, episodes: Sequence[Episode], progress: Progress = silent
) -> tuple[Calibration, list[Reading]]:
    """Measure the base model on its own episodes and give the reader its base norms.

    Args:
        reader: Its policy's adapter is switched off for the measurement.
        episodes: Played by the base model.
        progress: Told how many conversations are traced.
    """
    talks = [episode.conversation for episode in episodes]
    streams = [episode.tokens for episode in episodes]
    with reader.policy.reference():
        traces = reader.trace(talks, progress=progress, streams=streams)
    reader.base_norms = np.concatenate([t.norm_RL for t in traces]).mean(axis=0)
    readings = [reader.read(talk, one) for talk, one in zip(talks, traces, strict=True)]
    values = {}
    for name in reader.names:
        column = np.concatenate([reading.signals.column(name) for reading in readings])
        present = column[np.isfinite(column)]
        values[name] = present.tolist()
    return Calibration.of(values, reader.base_norms), readings
