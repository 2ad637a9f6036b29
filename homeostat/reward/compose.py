"""The reward of a turn: valence plus the user's own terms; and of a token: minus the KL penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.reward import RewardConfig
from homeostat.config.signals import AFFECTS, PATHWISE_SIGNALS
from homeostat.errors import HomeostatError
from homeostat.reward.valence import SetPoint, valence
from homeostat.signals.own import OwnFunction, own_function
from homeostat.types import Conversation, Reading, SignalTable, Trace, Valence


@dataclass(frozen=True)
class Rewards:
    """The reward of every assistant turn of one conversation.

    Attributes:
        total_N: Valence, or its gain since the turn before, plus weighted own terms.
        valence: Its homeostatic part, as a level.
        own_terms: Each own term, already weighted.
    """

    total_N: Float[np.ndarray, " N"]
    valence: Valence
    own_terms: Mapping[str, Float[np.ndarray, " N"]]

    def newest(self) -> Rewards:
        """The reward of the last turn alone."""
        level = self.valence
        return Rewards(
            self.total_N[-1:],
            Valence(level.names, level.total_N[-1:], level.terms_NS[-1:]),
            {name: term[-1:] for name, term in self.own_terms.items()},
        )


class Reward:
    """Scores assistant turns against resolved set points and the user's own terms.

    An own term is a Python callable ``term(conversation, signals, trace, **options)``: it gets one
    conversation, its signals (name to one number per assistant turn; the affect is that which
    ``reward.affect`` pays for) and its trace, and returns one number per assistant turn, higher is
    better.

    Attributes:
        pathwise: The set points that are followed by their own derivative; they are part of every
            turn's reward all the same.
    """

    def __init__(self, config: RewardConfig, set_points: Mapping[str, SetPoint]) -> None:
        self.mode = config.mode
        self.affect = config.affect
        self.set_points = dict(set_points)
        self.combine = config.combine
        self.pathwise = {
            name: point
            for name, point in set_points.items()
            if config.pathwise and name in PATHWISE_SIGNALS
        }
        self._terms = {name: _own_term(name, term) for name, term in config.terms.items()}

    @property
    def weights(self) -> dict[str, float]:
        """Of every term, by name."""
        held = {name: point.weight for name, point in self.set_points.items()}
        return held | {name: weight for name, (_, weight) in self._terms.items()}

    def score(
        self, conversations: Sequence[Conversation], readings: Sequence[Reading]
    ) -> list[Rewards]:
        """The rewards of every conversation.

        Raises:
            HomeostatError: A reward is not a finite number, or an own term fails or returns
                anything but one per assistant turn.
        """
        tables = [reading.signals for reading in readings]
        if self.affect == "felt":
            tables = [
                with_true_affect(*of_one) for of_one in zip(conversations, tables, strict=True)
            ]
            tables = paid_as_others(tables)
        elif self.affect == "yoked":
            tables = yoked(conversations, tables)
        return [
            self._score(talk, reading, table)
            for talk, reading, table in zip(conversations, readings, tables, strict=True)
        ]

    def _score(self, talk: Conversation, reading: Reading, table: SignalTable) -> Rewards:
        homeostatic = valence(table, self.set_points)
        own_terms = {
            name: weight * self._evaluate(function, talk, table, reading.trace)
            for name, (function, weight) in self._terms.items()
        }
        level = homeostatic.total_N
        paid = level if self.mode == "level" else drive_reduction(level)
        total = paid + sum(own_terms.values(), np.zeros_like(level))
        if not np.isfinite(total).all():
            row = int(np.flatnonzero(~np.isfinite(total))[0])
            bad = [n for n in homeostatic.names if not np.isfinite(table.column(n)[row])]
            raise HomeostatError(
                f"the reward of a reply is {total[row]}: {', '.join(bad) or 'an own term'} has no "
                "finite value there. Give that signal the weight 0 or mend the term."
            )
        return Rewards(total, homeostatic, own_terms)

    def _evaluate(
        self, function: OwnFunction, talk: Conversation, table: SignalTable, trace: Trace
    ) -> Float[np.ndarray, " N"]:
        signals = {signal: table.column(signal) for signal in table.names}
        return function((talk, signals, trace), len(table.turns))


def with_true_affect(talk: Conversation, table: SignalTable) -> SignalTable:
    """The table with what the user truly feels after each turn in the place of what was read.

    An upper bound for the reading. NaN where the user's affect is not known.
    """
    values = table.values.copy()
    for column, name in enumerate(table.names):
        if name in AFFECTS:
            for row, turn in enumerate(table.turns):
                after = talk.turns[turn + 1].affect if turn + 1 < len(talk.turns) else None
                values[row, column] = np.nan if after is None else after.get(name, np.nan)
    return SignalTable(table.names, values, table.turns)


def paid_as_others(tables: Sequence[SignalTable]) -> list[SignalTable]:
    """The tables with the mean of the batch wherever an affect is missing.

    What a user did not tell is neither good nor bad, and such a turn is to teach next to nothing.
    An affect that nobody told stays missing.
    """
    values_NS = np.concatenate([table.values for table in tables])
    known_NS = np.isfinite(values_NS)
    count_S = known_NS.sum(axis=0)
    sum_S = np.where(known_NS, values_NS, 0.0).sum(axis=0)
    mean_S = np.divide(sum_S, count_S, out=np.full(len(count_S), np.nan), where=count_S > 0)
    affects_S = np.isin(tables[0].names, AFFECTS)
    return [
        replace(t, values=np.where(np.isnan(t.values) & affects_S, mean_S, t.values))
        for t in tables
    ]


def yoked(
    conversations: Sequence[Conversation], tables: Sequence[SignalTable]
) -> list[SignalTable]:
    """Each table with what was read from another user at the same turn.

    The partner stands half of the batch away, so that it is of another group where groups stand
    side by side. The readings of a batch stay what they are as a whole, but no reply has any part
    in those that it is paid for.

    Raises:
        HomeostatError: There is nobody else, or nobody with the same turns.
    """
    count, result = len(tables), []
    for i, table in enumerate(tables):
        partner = (i + count // 2) % count
        same = len(tables[partner].turns) == len(table.turns)
        if conversations[partner].turns[0] == conversations[i].turns[0] or not same:
            raise HomeostatError(
                "reward.affect=yoked needs another user in the same batch for every user, with as "
                "many turns; use at least two groups per update (trainer.batch_size)."
            )
        affects = [column for column, name in enumerate(table.names) if name in AFFECTS]
        values = table.values.copy()
        values[:, affects] = tables[partner].values[:, affects]
        result.append(SignalTable(table.names, values, table.turns))
    return result


def drive_reduction(level_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """How much each turn of a conversation has raised the valence over the turn before it.

        r_1 = v_1,   r_n = v_n - v_{n-1}

    The first turn is compared with perfect homeostasis, v_0 = 0, so an episode's rewards sum to its
    last valence. Were the first turn free, they would sum to v_N - v_1, and a policy could earn by
    beginning badly in order to recover.

    Source: Keramati & Gutkin 2014 (eLife 3:e04811), with drive = -valence.
    """
    before = np.zeros_like(level_N)
    before[1:] = level_N[:-1]
    gain: Float[np.ndarray, " N"] = level_N - before
    return gain


def token_rewards(
    trace: Trace,
    turns: Sequence[int],
    turn_rewards: Float[np.ndarray, " N"],
    kl_coef: float,
) -> Float[np.ndarray, " R"]:
    """Reward per response token: the turn's reward at its last token, a KL penalty at each.

    The penalty is ``kl_coef`` times the log-ratio of policy and reference at the sampled token, the
    one-sample estimate of the KL (k1 in Schulman's note "Approximating KL divergence").

    Args:
        trace: Trace of the conversation.
        turns: Its assistant turns.
        turn_rewards: Their rewards.
        kl_coef: Reward units per nat, >= 0.
    """
    rewards: Float[np.ndarray, " R"] = -kl_coef * (trace.logprob_R - trace.ref_logprob_R).astype(
        np.float64
    )
    for turn, reward in zip(turns, turn_rewards, strict=True):
        tokens = np.flatnonzero(trace.turn_R == turn)
        rewards[tokens[-1]] += reward
    return rewards


def _own_term(name: str, term: Mapping[str, Any]) -> tuple[OwnFunction, float]:
    function = own_function(
        f"reward.terms.{name}", {key: value for key, value in term.items() if key != "weight"}
    )
    weight = term.get("weight", 1.0)
    if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise HomeostatError(f"reward.terms.{name}.weight={weight} must be a finite number.")
    return function, float(weight)
