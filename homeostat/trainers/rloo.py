"""REINFORCE with a leave-one-out baseline over whole conversations.

    The loop of policy_gradient.py, in which
        group_size episodes are played against the same bot, seed and all
        return of an episode    = sum of its tokens' rewards, the KL penalty included
        advantage of its tokens = return - mean return of the group's other episodes
        with credit=turn the same for each turn, of what is still to come from there on

Source: Ahmadian et al. 2024, arXiv 2402.14740. **Differs:** the action is a whole episode of
several turns rather than one answer; batches may be used for several minibatch steps, with the
clipped ratio of each token; at the first step it is the paper's estimator, up to a factor.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from homeostat.trainers.advantages import leave_one_out
from homeostat.trainers.groups import GroupRelative


class RLOO(GroupRelative):
    """The others' mean return as the baseline, in the reward's own unit."""

    def compare(self, returns_B: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """Returns minus the mean of the group's others."""
        return leave_one_out(returns_B, self.config.group_size)
