"""What GRPO and RLOO share: groups of episodes in the place of a critic."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from homeostat.config.trainers import GroupConfig
from homeostat.rollout.episodes import training_seeds
from homeostat.trainers.advantages import turn_advantages
from homeostat.trainers.batch import Credit, Ragged, response_turns
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.types import TokenStream


class GroupRelative(PolicyGradient):
    """A trainer that compares the episodes of one bot seed: same opening, same noise of the bot.

    With credit=episode its return is compared as a whole, and every token of the episode gets the
    same advantage; with credit=turn those of a turn get what is still to come from there on,
    compared with what is still to come for the others (see `turn_advantages`, also for why this is
    unbiased and the mean of each turn's own reward would not be).
    """

    config: GroupConfig

    @property
    def compared(self) -> int:
        """Episodes of one bot seed."""
        return self.config.group_size

    def episode_seeds(self) -> list[int]:
        """Groups side by side: each seed as often as a group has episodes."""
        size = self.config.group_size
        seeds = training_seeds(self.seed, self.done, self.config.batch_size // size)
        return [seed for seed in seeds for _ in range(size)]

    def credit(self, batch: Sequence[TokenStream], rewards: Ragged, values: Ragged) -> Credit:
        """The episode's or the turn's advantage for each of its tokens."""
        del values
        if self.config.credit == "turn":
            turns = list(map(response_turns, batch))
            return Credit(turn_advantages(rewards, turns, self.config.gamma, self.compare))
        advantage_B = self.compare(np.array([rewards_R.sum() for rewards_R in rewards]))
        return Credit([np.full(len(r), a) for r, a in zip(rewards, advantage_B, strict=True)])

    @abstractmethod
    def compare(self, returns_B: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """Advantage of each episode within its group."""
