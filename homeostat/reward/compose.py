"""The reward of a turn: valence plus the user's own terms; and of a token: minus the KL penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.reward import RewardConfig
from homeostat.errors import HomeostatError
from homeostat.reward.valence import SetPoint, valence
from homeostat.signals.own import OwnFunction, own_function
from homeostat.types import Conversation, Reading, Trace, Valence


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
    conversation, its signals (name to one number per assistant turn) and its trace, and returns one
    number per assistant turn, higher is better.
    """

    def __init__(self, config: RewardConfig, set_points: Mapping[str, SetPoint]) -> None:
        self.mode = config.mode
        self.set_points = dict(set_points)
        self._terms = {name: _own_term(name, term) for name, term in config.terms.items()}

    def score(
        self, conversations: Sequence[Conversation], readings: Sequence[Reading]
    ) -> list[Rewards]:
        """The rewards of every conversation.

        Raises:
            HomeostatError: A reward is not a finite number, or an own term fails or returns
                anything but one per assistant turn.
        """
        return [
            self._score(talk, reading)
            for talk, reading in zip(conversations, readings, strict=True)
        ]

    def _score(self, talk: Conversation, reading: Reading) -> Rewards:
        homeostatic = valence(reading.signals, self.set_points)
        own_terms = {
            name: weight * self._evaluate(function, talk, reading)
            for name, (function, weight) in self._terms.items()
        }
        level = homeostatic.total_N
        paid = level if self.mode == "level" else drive_reduction(level)
        total = paid + sum(own_terms.values(), np.zeros_like(level))
        if not np.isfinite(total).all():
            row = int(np.flatnonzero(~np.isfinite(total))[0])
            bad = [n for n in homeostatic.names if not np.isfinite(reading.signals.column(n)[row])]
            raise HomeostatError(
                f"the reward of a reply is {total[row]}: {', '.join(bad) or 'an own term'} has no "
                "finite value there. Give that signal the weight 0 or mend the term."
            )
        return Rewards(total, homeostatic, own_terms)

    def _evaluate(
        self, function: OwnFunction, talk: Conversation, reading: Reading
    ) -> Float[np.ndarray, " N"]:
        table = reading.signals
        signals = {signal: table.column(signal) for signal in table.names}
        return function((talk, signals, reading.trace), len(table.turns))


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
