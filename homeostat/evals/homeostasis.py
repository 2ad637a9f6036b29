"""Does training bring the model nearer to its set points on conversations it never saw?

Base and trained model play the same held-out episodes: the same bots with the same seeds, replies
sampled from the same random numbers. The unit is the episode; every figure is a mean over turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy

from homeostat.config.evals import EvalConfig
from homeostat.config.run import RolloutConfig
from homeostat.config.signals import AFFECTS
from homeostat.evals.stats import compare_paired
from homeostat.models.adapters import Policy
from homeostat.reward.compose import Reward, Rewards, with_true_affect
from homeostat.reward.valence import SetPoint, valence
from homeostat.rollout.episodes import held_out_seeds, play
from homeostat.signals.reader import SignalReader, episode_record
from homeostat.types import Bots, Episode, Estimate, EvalResult, Progress, Reading, silent


@dataclass(frozen=True)
class Homeostasis:
    """The evaluation that every run makes before and after training.

    Attributes:
        relational: Set points of all affects, equally weighted, whatever the reward holds.
    """

    config: EvalConfig
    policy: Policy
    bots: Bots
    reader: SignalReader
    reward: Reward
    rollout: RolloutConfig
    relational: Mapping[str, SetPoint] = field(default_factory=dict)

    def measure(
        self,
        arm: str,
        playing: Progress = silent,
        tracing: Progress = silent,
        temperature: float = 1.0,
        system: str | None = None,
    ) -> list[dict[str, Any]]:
        """One row per held-out episode, played by the policy as it is now.

        Args:
            arm: Name of the policy's state, such as ``base``.
            playing: Told how many replies are done.
            tracing: Told how many conversations are measured.
            temperature: Of the sampling.
            system: What the policy is told in a system turn. The base, from which KL and under
                which perplexity are measured, is not told.
        """
        seeds = held_out_seeds(self.config.episodes)
        episodes = play(self.policy, self.bots, seeds, self.rollout, temperature, playing, system)
        talks = [episode.conversation for episode in episodes]
        plain = None if system is None else [talk.unprompted for talk in talks]
        readings = self.reader.measure(episodes, progress=tracing, ref_talks=plain)
        rewards = self.reward.score(talks, readings)
        return [
            {"arm": arm}
            | episode_record(episode, reading, self.reader.affects)
            | {"metrics": episode_metrics(reading, reward) | self._felt(episode, reading)}
            for episode, reading, reward in zip(episodes, readings, rewards, strict=True)
        ]

    def _felt(self, episode: Episode, reading: Reading) -> dict[str, float | None]:
        """What the user felt after the replies, and how near that is to where it should be.

        The same figures whatever the reward is: ``true/*`` the affects themselves, and the mean
        valence over all of them, as the user truly felt (``relational_true``) and as it was read
        (``relational_read``). No reward that is made of readings sees the former, so a reading that
        is fooled shows here.
        """
        table = with_true_affect(episode.conversation, reading.signals)
        felt = {f"true/{n}": _mean(table.column(n)) for n in table.names if n in AFFECTS}
        if self.relational:
            felt["relational_true"] = _mean(valence(table, self.relational).total_N)
            felt["relational_read"] = _mean(valence(reading.signals, self.relational).total_N)
        return felt

    def compare(
        self, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
    ) -> EvalResult:
        """Paired differences of every metric; ``after`` may be empty if it was never measured."""
        metrics: dict[str, Estimate] = {}
        for name in before[0]["metrics"]:
            old = [row["metrics"][name] for row in before]
            if after:
                new = [row["metrics"][name] for row in after]
                metrics[name] = compare_paired(old, new, self.config.bootstrap_samples)
            else:
                unpaired = compare_paired(old, old, samples=1)
                metrics[name] = Estimate(unpaired.before, None, None, None, unpaired.n)
        return EvalResult(self.config.name, [*before, *after], metrics)


def episode_metrics(reading: Reading, rewards: Rewards) -> dict[str, float | None]:
    """Means over the turns of one episode; None where nothing could be measured, or is held.

    ``valence``, its summands ``term/*``, the signals, and the coherence of the replies whether or
    not the reward looks at it: ``coherence/base_perplexity`` (tokens) and ``coherence/kl`` (nats
    per token from the base).
    """
    trace, table, valence = reading.trace, reading.signals, rewards.valence
    turns = [trace.turn_R == turn for turn in np.unique(trace.turn_R)]
    by_turn = {
        "valence": valence.total_N if valence.names else np.array([]),
        "coherence/base_perplexity": np.array(
            [np.exp(-trace.ref_logprob_R[turn].mean()) for turn in turns]
        ),
        "coherence/kl": trace.kl_R,
    }
    for column, name in enumerate(valence.names):
        by_turn[f"term/{name}"] = valence.terms_NS[:, column]
    for name, term in rewards.own_terms.items():
        by_turn[f"own/{name}"] = term
    for name in table.names:
        by_turn[f"signal/{name}"] = table.column(name)
    return {name: _mean(values) for name, values in by_turn.items()}


def _mean(values: np.ndarray) -> float | None:
    present = values[np.isfinite(values)]
    return float(present.mean()) if len(present) else None


def perception_validity(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Rank correlation of the bots' true affect with what the probes perceived, per affect.

    Over the user turns that answer a reply and whose affect is known; the opening shows none yet.
    ``spearman`` is None where one of the two does not vary.
    """
    turns = [
        turn
        for row in rows
        for turn in row["turns"][1:]
        if turn["role"] == "user" and turn["affect"] and turn["perceived"]
    ]
    validity: dict[str, dict[str, float | int | None]] = {}
    for affect in turns[0]["perceived"] if turns else ():
        known = [t for t in turns if affect in t["affect"]]
        pairs = np.array([[t["affect"][affect], t["perceived"][affect]] for t in known])
        varies = len(pairs) > 2 and (np.ptp(pairs, axis=0) > 0).all()
        rank = float(scipy.stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic) if varies else None
        validity[affect] = {"spearman": rank, "n": len(pairs)}
    return validity
