"""Proximal policy optimisation over whole conversations, with homeostatic valence as the reward.

    The loop of policy_gradient.py, in which
        advantages = GAE over all response tokens of an episode, whitened over the batch
        the critic is fitted to advantage + value by a clipped squared error, both in deviations
            of the returns so far from their mean
        gradients of policy and critic are clipped apart

Source: Schulman et al. 2017, arXiv 1707.06347. **Differs:** the critic is a linear head on hidden
states of the policy's own base, so there is no second model. With critic=shared it reads the
policy's final hidden state; with critic=lora the same base with an adapter of the critic's own,
which costs one more forward pass and keeps the critic's errors out of the policy's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.config.trainers import PPOConfig
from homeostat.models.forward import forward, make_batch, read_in_batches, read_prefix
from homeostat.models.logprobs import predicting_hidden
from homeostat.signals.trace import Critic
from homeostat.trainers.advantages import explained_variance, gae, whiten
from homeostat.trainers.batch import Batch, Credit, Ragged, gathered, response_turns
from homeostat.trainers.losses import value_loss
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.types import Footprint, Metrics, TokenBatch, TokenStream


class ReturnScale:
    """Mean and deviation of all returns so far, so that a critic learns numbers near 1.

    The critic's weights are left alone when the scale moves: its estimate shifts by as much.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def deviation(self) -> float:
        """1 as long as nothing has varied."""
        variance = self._squares / self.count if self.count else 0.0
        return float(np.sqrt(variance)) if variance > 0 else 1.0

    def take_in(self, returns: Float[np.ndarray, " R"]) -> None:
        """Count these, too (Chan et al. 1983, parallel variance)."""
        total = self.count + len(returns)
        step = float(returns.mean()) - self.mean
        self._squares += float(returns.var()) * len(returns)
        self._squares += step**2 * self.count * len(returns) / total
        self.mean += step * len(returns) / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        self.count, self.mean = int(state["count"]), float(state["mean"])
        self._squares = float(state["squares"])


class PPO(PolicyGradient):
    """A critic and GAE."""

    config: PPOConfig

    def __init__(self, config: PPOConfig, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        policy = self.policy
        self.critic = nn.Linear(policy.hidden_size, 1).to(policy.device, torch.float32)
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)
        self.critic_adapter = policy.add_critic(self.seed) if config.critic == "lora" else []
        learned = [*self.critic.parameters(), *self.critic_adapter]
        self.optimizer.add_param_group({"params": learned, "lr": config.value_lr})
        self._base_lrs.append(config.value_lr)
        self.scale = ReturnScale()

    @classmethod
    def footprint(cls, config: PPOConfig, length: int) -> Footprint:  # type: ignore[override]
        """The same; a critic with an adapter of its own is trained beside the policy's."""
        shared = super().footprint(config, length)
        return replace(shared, adapters=2) if config.critic == "lora" else shared

    def value(self, hidden: Float[Tensor, "R D"]) -> Float[Tensor, " R"]:
        """The critic's estimate from final hidden states that precede each token."""
        estimate: Float[Tensor, " R"] = self.critic(hidden.float())[:, 0]
        return self.scale.mean + self.scale.deviation * estimate

    def trace_critic(self) -> Critic | None:
        """The shared critic; one with an adapter of its own cannot use the policy's states."""
        return None if self.critic_adapter else self.value

    def credit(self, batch: Sequence[TokenStream], rewards: Ragged, values: Ragged) -> Credit:
        """GAE per episode; values from the critic's own pass if the trace has none."""
        config = self.config
        values = values or self._own_values(batch)
        pairs = [
            gae(r, v, config.gamma, config.gae_lambda, turns)
            for r, v, turns in zip(rewards, values, self._turns(batch), strict=True)
        ]
        advantages = [advantage for advantage, _ in pairs]
        if config.whiten_advantages:
            flat = whiten(np.concatenate(advantages))
            advantages = np.split(flat, np.cumsum([len(a) for a in advantages])[:-1])
        returns = [target for _, target in pairs]
        return Credit(advantages, values, returns)

    def _turns(self, batch: Sequence[TokenStream]) -> list[np.ndarray | None]:
        """Turn of each response token, where credit goes by turns."""
        if self.config.credit == "token":
            return [None] * len(batch)
        return list(map(response_turns, batch))

    def update(self, batch: Batch) -> Metrics:
        """The same, once the critic's scale has taken in the returns; says what it explained."""
        credit = batch.credit
        returns = np.concatenate(list(credit.returns))
        explained = explained_variance(np.concatenate(list(credit.values)), returns)
        mean, deviation = self.scale.mean, self.scale.deviation
        self.scale.take_in(returns)
        # What the critic said, as it would say it now: clipping is about what it has learnt since.
        values = [
            self.scale.mean + self.scale.deviation * (v - mean) / deviation for v in credit.values
        ]
        batch = replace(batch, credit=replace(credit, values=values))
        return super().update(batch) | {"critic/explained_variance": explained}

    def policy_weight(self) -> float:
        """0 while the critic warms up, then 1."""
        return float(self.done >= self.config.critic_warmup)

    def clipped(self) -> float:
        """Clip the gradients of policy and critic apart, so that neither mutes the other's."""
        limit = self.config.max_grad_norm
        norms = [
            float(nn.utils.clip_grad_norm_(group["params"], limit))
            for group in self.optimizer.param_groups
        ]
        return max(norms) if not np.isfinite(norms).all() else norms[0]

    def critic_loss(
        self, hidden: Float[Tensor, "R D"], inputs: TokenBatch, batch: Batch, rows: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        """The clipped squared error of the values, times ``value_coef``."""
        estimate = self._own_pass(inputs) if self.critic_adapter else self.value(hidden)
        old, returns = (
            gathered(column, rows, hidden.device)
            for column in (batch.credit.values, batch.credit.returns)
        )
        unit = self.scale.deviation
        loss, metrics = value_loss(
            estimate / unit, old / unit, returns / unit, self.config.value_clip_range
        )
        return self.config.value_coef * loss, metrics

    def _own_pass(self, inputs: TokenBatch) -> Float[Tensor, " R"]:
        """Values from the base with the critic's adapter."""
        with self.policy.critic():
            final = forward(self.policy, inputs, read_prefix(self.policy, inputs))
        return self.value(predicting_hidden(final, inputs.response_mask))

    @torch.no_grad()
    def _own_values(self, streams: Sequence[TokenStream]) -> Ragged:
        """Values of every response token of every episode, in the order given."""
        policy = self.policy

        def read(part: list[TokenStream], _places: list[int]) -> list[np.ndarray]:
            inputs = make_batch(policy, part)
            sizes = inputs.response_mask.sum(dim=1).tolist()
            return [v.double().cpu().numpy() for v in torch.split(self._own_pass(inputs), sizes)]

        return read_in_batches(streams, read, self.config.micro_batch_tokens)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the policy's adapter."""
        adapter = [p.detach().clone() for p in self.critic_adapter]
        return super().state_dict() | {
            "critic": self.critic.state_dict(),
            "scale": self.scale.state_dict(),
            "critic_adapter": adapter,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the update that `state_dict` was taken at."""
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        if "scale" in state:  # a checkpoint from before there was one has a critic in reward units
            self.scale.load_state_dict(state["scale"])
        for parameter, saved in zip(self.critic_adapter, state["critic_adapter"], strict=True):
            parameter.copy_(saved)
