"""From conversations to signals: one place that knows which signals a run measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.signals import SignalsConfig
from homeostat.models.adapters import Policy
from homeostat.models.hooks import layers_at
from homeostat.signals.intrinsic import intrinsic_signals
from homeostat.signals.own import own_signals
from homeostat.signals.probing.probes import AffectProbes
from homeostat.signals.trace import Critic, trace
from homeostat.types import (
    Conversation,
    Episode,
    Progress,
    Reading,
    SignalTable,
    TokenStream,
    Trace,
    silent,
)


class SignalReader:
    """Measures signals; ``base_norms`` must be set (by `calibrate`) before a table is made."""

    def __init__(self, policy: Policy, config: SignalsConfig, probes: AffectProbes | None) -> None:
        self.policy = policy
        self.config = config
        self.probes = probes
        intrinsic = config.intrinsic
        self.own = own_signals(config)
        self._packaged = (
            *(intrinsic.names if intrinsic else ()),
            *(probes.names if probes else ()),
        )
        self.names = (*self._packaged, *config.own)
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
        streams: Sequence[TokenStream] | None = None,
        ref_talks: Sequence[Conversation] | None = None,
    ) -> list[Trace]:
        """Traces with every layer that the signals of this run need; see `trace`."""
        return trace(
            self.policy,
            conversations,
            self.norm_layers,
            self.probe_layers,
            critic,
            progress=progress,
            streams=streams,
            ref_talks=ref_talks,
        )

    def measure(
        self,
        episodes: Sequence[Episode],
        critic: Critic | None = None,
        progress: Progress = silent,
        ref_talks: Sequence[Conversation] | None = None,
    ) -> list[Reading]:
        """What this run measures on every episode, in the order given; ``ref_talks`` as `trace`."""
        talks = [episode.conversation for episode in episodes]
        streams = [episode.tokens for episode in episodes]
        traces = self.trace(talks, critic, progress, streams, ref_talks)
        return [self.read(talk, one) for talk, one in zip(talks, traces, strict=True)]

    def read(self, talk: Conversation, trace: Trace) -> Reading:
        """The signals of a traced conversation.

        A relational signal of an assistant turn is the perceived affect of the user turn that
        answers it; a turn that nobody answers has none (NaN).

        Raises:
            HomeostatError: A signal of the user's own fails, or does not give one number per turn.
        """
        by_reference, by_policy = (
            self._perceive(hidden) for hidden in (trace.hidden_ref, trace.hidden_policy)
        )
        from_reference = self.config.affect is None or self.config.affect.perception == "reference"
        perceived = by_reference if from_reference else by_policy
        rows = [self._row(talk, turn, trace, perceived) for turn in talk.assistant_turns]
        packaged = np.array(rows, dtype=np.float64).reshape(-1, len(self._packaged))
        own = [function((talk, trace), len(rows)) for function in self.own]
        values = np.column_stack([packaged, *own])
        table = SignalTable(self.names, values, talk.assistant_turns)
        return Reading(trace, table, perceived, np.abs(by_policy - by_reference))

    def _row(
        self, talk: Conversation, turn: int, trace: Trace, perceived: np.ndarray
    ) -> list[float]:
        signals: dict[str, float] = {}
        if self.config.intrinsic:
            if self.base_norms is None:
                raise ValueError("calibrate the reader before reading signals.")
            signals |= intrinsic_signals(trace, turn, talk.turns[turn].text, self.base_norms)
        if turn + 1 in trace.user_turns and self.affects:
            answer = perceived[trace.user_turns.index(turn + 1)]
            signals |= dict(zip(self.affects, answer.tolist(), strict=True))
        return [signals.get(name, float("nan")) for name in self._packaged]

    def _perceive(self, hidden: np.ndarray) -> Float[np.ndarray, "U A"]:
        return self.probes.read(hidden) if self.probes else np.zeros((len(hidden), 0))


def episode_record(episode: Episode, reading: Reading, affects: Sequence[str]) -> dict[str, Any]:
    """One measured episode as a JSON-ready mapping: turns, true and perceived affect, signals.

    Args:
        episode: The episode.
        reading: What was measured on it.
        affects: Columns of ``reading.perceived``.
    """
    table = reading.signals
    signals = dict(zip(table.turns, table.values.tolist(), strict=True))
    perceived = dict(zip(reading.trace.user_turns, reading.perceived.tolist(), strict=True))
    turns: list[dict[str, Any]] = []
    for index, turn in enumerate(episode.conversation.turns):
        said: dict[str, Any] = {"role": turn.role, "text": turn.text}
        if turn.role == "user":
            said |= {"move": turn.move, "affect": turn.affect and dict(turn.affect)}
            said["perceived"] = dict(zip(affects, perceived[index], strict=True))
        elif turn.role == "assistant":
            said["signals"] = dict(zip(table.names, signals[index], strict=True))
        turns.append(said)
    return {"seed": episode.seed, "bot": episode.bot, "turns": turns}
