"""From conversations to signals: one place that knows which signals a run measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.signals import SignalsConfig
from homeostat.models.adapters import Policy
from homeostat.models.hooks import layers_at
from homeostat.signals.intrinsic import intrinsic_signals
from homeostat.signals.probing.probes import AffectProbes
from homeostat.signals.trace import Critic, trace
from homeostat.types import Conversation, Episode, Progress, SignalTable, Trace, silent


@dataclass(frozen=True)
class Readings:
    """What was measured on some conversations.

    Attributes:
        traces: One per conversation.
        table: The signals of every assistant turn.
        perceived: Per conversation the perceived affect of every user turn, as the reward sees it.
        drift: Per affect the mean distance between the readings with the adapter on and off.
    """

    traces: Sequence[Trace]
    table: SignalTable
    perceived: Sequence[Float[np.ndarray, "_ A"]]
    drift: dict[str, float]


class SignalReader:
    """Measures signals; ``base_norms`` must be set (by `calibrate`) before a table is made."""

    def __init__(self, policy: Policy, config: SignalsConfig, probes: AffectProbes | None) -> None:
        self.policy = policy
        self.config = config
        self.probes = probes
        intrinsic = config.intrinsic
        self.names = (*(intrinsic.names if intrinsic else ()), *(probes.names if probes else ()))
        self.norm_layers = layers_at(intrinsic.norm_layers, policy.num_layers) if intrinsic else ()
        self.probe_layers = probes.layers if probes else ()
        self.base_norms: Float[np.ndarray, " L"] | None = None

    @property
    def affects(self) -> tuple[str, ...]:
        """Columns of ``perceived``."""
        return self.probes.names if self.probes else ()

    def trace(
        self,
        conversations: Sequence[Conversation],
        critic: Critic | None = None,
        progress: Progress = silent,
    ) -> list[Trace]:
        """Traces with every layer that the signals of this run need."""
        return trace(
            self.policy,
            conversations,
            self.norm_layers,
            self.probe_layers,
            critic,
            progress=progress,
        )

    def read(self, conversations: Sequence[Conversation], traces: Sequence[Trace]) -> Readings:
        """The signals of traced conversations.

        A relational signal of an assistant turn is the perceived affect of the user turn that
        answers it; a turn that nobody answers has none (NaN).
        """
        pairs = [(self._perceive(t.hidden_ref), self._perceive(t.hidden_policy)) for t in traces]
        from_reference = self.config.affect is None or self.config.affect.perception == "reference"
        perceived = [ref if from_reference else own for ref, own in pairs]
        rows, where = [], []
        for i, (talk, found) in enumerate(zip(conversations, traces, strict=True)):
            for turn in talk.assistant_turns:
                rows.append(self._row(talk, turn, found, perceived[i]))
                where.append((i, turn))
        index = np.array(where, dtype=np.int64).reshape(-1, 2)
        values = np.array(rows, dtype=np.float64).reshape(-1, len(self.names))
        table = SignalTable(self.names, values, index[:, 0], index[:, 1])
        return Readings(traces, table, perceived, self._drift(pairs))

    def _row(
        self, talk: Conversation, turn: int, found: Trace, perceived: np.ndarray
    ) -> list[float]:
        signals: dict[str, float] = {}
        if self.config.intrinsic:
            if self.base_norms is None:
                raise ValueError("calibrate the reader before reading signals.")
            signals |= intrinsic_signals(found, turn, talk.turns[turn].text, self.base_norms)
        if turn + 1 in found.user_turns and self.affects:
            answer = perceived[found.user_turns.index(turn + 1)]
            signals |= dict(zip(self.affects, answer.tolist(), strict=True))
        return [signals.get(name, float("nan")) for name in self.names]

    def _perceive(self, hidden: np.ndarray) -> Float[np.ndarray, "U A"]:
        return self.probes.read(hidden) if self.probes else np.zeros((len(hidden), 0))

    def _drift(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        if not pairs or not self.affects:
            return {}
        distance = np.abs(np.concatenate([own - ref for ref, own in pairs])).mean(axis=0)
        return dict(zip(self.affects, distance.tolist(), strict=True))


def episode_record(
    episode: Episode, readings: Readings, row: int, affects: Sequence[str]
) -> dict[str, Any]:
    """One measured episode as a JSON-ready mapping: turns, true and perceived affect, signals.

    Args:
        episode: The episode.
        readings: What was measured on the batch that it is in.
        row: Its place in that batch.
        affects: Columns of ``readings.perceived``.
    """
    table = readings.table
    rows = {int(table.turn_N[n]): n for n in np.flatnonzero(table.conversation_N == row)}
    perceived = dict(zip(readings.traces[row].user_turns, readings.perceived[row], strict=True))
    turns: list[dict[str, Any]] = []
    for index, turn in enumerate(episode.conversation.turns):
        said: dict[str, Any] = {"role": turn.role, "text": turn.text}
        if turn.role == "user":
            said |= {"move": turn.move, "affect": turn.affect and dict(turn.affect)}
            said["perceived"] = dict(zip(affects, perceived[index].tolist(), strict=True))
        else:
            said["signals"] = dict(
                zip(table.names, table.values[rows[index]].tolist(), strict=True)
            )
        turns.append(said)
    return {"seed": episode.seed, "bot": episode.bot, "turns": turns}
