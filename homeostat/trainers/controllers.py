"""Controllers: how prices, bonuses and the learning rate move from one update to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from homeostat.config.trainers import KLConfig, PolicyGradientConfig


class FixedKL:
    """A price of KL that never moves."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.coef = config.coef

    def update(self, kl: float, entropy: float) -> None:
        """Take in what one update's batch showed.

        Args:
            kl: Mean KL of policy to reference, nats per token.
            entropy: Mean entropy of the policy, nats per token.
        """

    def state_dict(self) -> dict[str, Any]:
        """Every number that `update` has moved."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        vars(self).update(state)


class AdaptiveKL(FixedKL):
    """A price that rises while the KL is above its target, and falls while it is below.

        e = clip(KL / target - 1, -0.2, 0.2)
        coef <- coef (1 + gain e)

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2. **Differs:** KL and target are means
    per token rather than sums per sample, since the length of an episode varies.
    """

    def update(self, kl: float, entropy: float) -> None:  # noqa: ARG002
        """Move the price a little towards where the KL would be on target."""
        error = min(max(kl / self.config.target - 1, -0.2), 0.2)
        self.coef *= 1 + self.config.gain * error


class PidKL(FixedKL):
    """A price set by proportion, integral and derivative of the KL's relative error.

        e = clip(KL / target - 1, -1, 1)
        e <- e clip(H_first / H, 1/2, 2)   where e > 0     entropy gate
        e <- e relax                       where e < 0     asymmetry
        I <- I + e, kept where |integral I| <= log max_factor
        coef = coef_0 exp(proportional e + integral I + derivative (e - e_before))

    H is the policy's entropy, H_first that of the first update, where the policy is the base:
    leaving the base for a narrower distribution counts up to double, for a wider one down to half.
    The price is kept within a factor ``max_factor`` of the one it started from.

    Source: the ideas are those of SAFE (Maity 2026, arXiv 2602.04651), which tells exploration from
    collapse by entropy and penalises on one side. **Differs:** the equations are this project's.
    SAFE's PID follows the reward and moves a threshold above which KL costs; here it follows the KL
    itself and moves its price, so that it also works for a reward without a known scale. Below the
    target the price falls slowly instead of vanishing. No second critic, no phases.
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__(config)
        self.integral = 0.0
        self.error = 0.0
        self.first_entropy: float | None = None

    def update(self, kl: float, entropy: float) -> None:
        """Move the price quickly up where the policy collapses, and slowly down."""
        config = self.config
        if self.first_entropy is None:
            self.first_entropy = entropy
        gate = min(max(self.first_entropy / max(entropy, 1e-8), 0.5), 2.0)
        error = min(max(kl / config.target - 1, -1.0), 1.0)
        error *= gate if error > 0 else config.relax
        bound = math.log(config.max_factor)
        limit = bound / config.integral
        self.integral = min(max(self.integral + error, -limit), limit)
        exponent = (
            config.proportional * error
            + config.integral * self.integral
            + config.derivative * (error - self.error)
        )
        self.error = error
        self.coef = config.coef * math.exp(min(max(exponent, -bound), bound))


class EntropyBonus:
    """What a nat of entropy is worth in the loss; with a target it moves to hold the entropy there.

        e    = target - H                      H the policy's mean entropy, nats per token
        I    <- max(0, I + integral e)         begins at coef_0
        coef = max(0, I + proportional e)

    I alone is the temperature of SAC, the dual variable of the constraint H >= target: it learns
    how much is needed but swings past the target, which the part in proportion damps. The bonus is
    gone where the entropy stays above the target without it: a floor rather than a ceiling.

    Source: Haarnoja et al. 2018, arXiv 1812.05905, equations 17 and 18, for I; Stooke et al. 2020,
    arXiv 2007.03964, for the proportional part of a dual variable. **Differs:** one step per
    update, on the entropy of the distributions rather than on minus the log-probability of what was
    sampled; I itself moves, not its logarithm, so that it can start from 0; entropy is no part of
    rewards and values.
    """

    def __init__(self, config: PolicyGradientConfig) -> None:
        self.config = config
        self.coef = self.integral = config.entropy_coef

    def update(self, entropy: float) -> None:
        """Take in the mean entropy of one update's batch, nats per token."""
        config = self.config
        if config.entropy_target is None:
            return
        error = config.entropy_target - entropy
        self.integral = max(0.0, self.integral + config.entropy_integral * error)
        self.coef = max(0.0, self.integral + config.entropy_proportional * error)

    def state_dict(self) -> dict[str, Any]:
        """What `update` has moved."""
        return {"coef": self.coef, "integral": self.integral}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.coef, self.integral = float(state["coef"]), float(state["integral"])


def make_kl_controller(config: KLConfig) -> FixedKL:
    """The controller that the config names."""
    kinds = {"fixed": FixedKL, "adaptive": AdaptiveKL, "pid": PidKL}
    return kinds[config.kind](config)


def lr_factor(update: int, warmup_steps: int, max_steps: int, decay: str) -> float:
    """What the learning rate of one update is multiplied by, above 0 and at most 1.

    It rises linearly over ``warmup_steps`` and then falls so that it would be 0 at ``max_steps``.

    Args:
        update: From 0 to max_steps - 1.
        warmup_steps: Updates until the full rate.
        max_steps: Updates of the whole run.
        decay: ``constant``, ``linear`` or ``cosine``.
    """
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    done = (update - warmup_steps) / max(1, max_steps - warmup_steps)
    if decay == "linear":
        return 1 - done
    if decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0
