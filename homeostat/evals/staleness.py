"""Does a probe still read what it read before training moved the model?

A frozen probe belongs to the hidden states that it was fitted on. Its test authors are read again
with the adapter off and on: how well it tells the affect then, and how far its reading has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from homeostat.config.signals import AffectConfig
from homeostat.models.adapters import Policy
from homeostat.signals.probing.auroc import auroc
from homeostat.signals.probing.perception import Perception
from homeostat.signals.probing.probes import TEST, split_by_group
from homeostat.signals.probing.states import read_states
from homeostat.types import Progress, silent

ROWS = 256  # test messages that are read again, evenly spread


def measure_staleness(
    policy: Policy, perception: Perception, config: AffectConfig, progress: Progress = silent
) -> dict[str, dict[str, Any]]:
    """Per affect: AUROC with the adapter off and on, the distance of both readings, an alarm.

    Args:
        policy: With its trained adapter.
        perception: Probes and the corpus whose test authors are read.
        config: The thresholds of the alarm.
        progress: Told how many messages are read.
    """
    test = np.flatnonzero(split_by_group(perception.corpus.groups) == TEST)
    rows = test[np.unique(np.linspace(0, len(test) - 1, min(ROWS, len(test))).astype(int))]
    messages = [perception.corpus.utterances[i] for i in rows]
    probes = perception.probes
    with policy.reference():
        off = probes.read(read_states(policy, messages, probes.layers, progress))
    on = probes.read(read_states(policy, messages, probes.layers, progress))
    return {
        affect: _compare(
            off[:, column], on[:, column], perception.corpus.labels(affect)[rows], config
        )
        for column, affect in enumerate(probes.names)
    }


def stale(figures_by_affect: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The affects whose alarm went off."""
    return [affect for affect, figures in figures_by_affect.items() if figures["stale"]]


def _compare(
    off: np.ndarray, on: np.ndarray, label: np.ndarray, config: AffectConfig
) -> dict[str, Any]:
    judged = label >= 0
    before, after = (auroc(label[judged], reading[judged]) for reading in (off, on))
    distance = float(np.abs(on - off).mean())
    dropped = before is not None and after is not None and before - after >= config.stale_auroc_drop
    return {
        "auroc_off": before,
        "auroc_on": after,
        "distance": distance,
        "n": int(judged.sum()),
        "stale": dropped or distance >= config.stale_distance,
    }
