"""Group relative policy optimisation over whole conversations.

    The loop of policy_gradient.py, in which
        group_size episodes are played against the same bot, seed and all
        return of an episode    = sum of its tokens' rewards
        advantage of its tokens = (return - mean of the group) / standard deviation of the group
        with credit=turn the same for each turn, of what is still to come from there on

Source: Shao et al. 2024, arXiv 2402.03300. **Differs:** the outcome is a whole episode of several
turns rather than one answer; the KL penalty is part of the reward unless kl_estimator=k3, which is
the paper's; tokens are averaged over the minibatch rather than first within each answer, so that a
long answer is not judged more mildly than a short one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from homeostat.trainers.advantages import group_relative
from homeostat.trainers.groups import GroupRelative


class GRPO(GroupRelative):
    """Group mean as the baseline, group deviation as the unit."""

    def compare(self, returns_B: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """Returns in standard deviations from their group's mean."""
        return group_relative(returns_B, self.config.group_size)
