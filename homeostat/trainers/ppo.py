"""Proximal policy optimisation over whole conversations, with homeostatic valence as the reward.

    The loop of policy_gradient.py, in which
        advantages = GAE over all response tokens of an episode, whitened over the batch
        the critic is fitted to advantage + value by a clipped squared error

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
from homeostat.trainers.advantages import gae, whiten
from homeostat.trainers.losses import value_loss
from homeostat.trainers.policy_gradient import Batch, Credit, PolicyGradient, Ragged, gathered
from homeostat.types import Footprint, Metrics, TokenBatch, TokenStream


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

    @classmethod
    def footprint(cls, config: PPOConfig, length: int) -> Footprint:  # type: ignore[override]
        """The same; a critic with an adapter of its own is trained beside the policy's."""
        shared = super().footprint(config, length)
        return replace(shared, adapters=2) if config.critic == "lora" else shared

    def value(self, hidden: Float[Tensor, "R D"]) -> Float[Tensor, " R"]:
        """The critic's estimate from final hidden states that precede each token."""
        estimate: Float[Tensor, " R"] = self.critic(hidden.float())[:, 0]
        return estimate

    def trace_critic(self) -> Critic | None:
        """The shared critic; one with an adapter of its own cannot use the policy's states."""
        return None if self.critic_adapter else self.value

    def credit(self, batch: Sequence[TokenStream], rewards: Ragged, values: Ragged) -> Credit:
        """GAE per episode; values from the critic's own pass if the trace has none."""
        config = self.config
        values = values or self._own_values(batch)
        pairs = [
            gae(r, v, config.gamma, config.gae_lambda) for r, v in zip(rewards, values, strict=True)
        ]
        advantages = [advantage for advantage, _ in pairs]
        if config.whiten_advantages:
            flat = whiten(np.concatenate(advantages))
            advantages = np.split(flat, np.cumsum([len(a) for a in advantages])[:-1])
        return Credit(advantages, values, [target for _, target in pairs])

    def critic_loss(
        self, hidden: Float[Tensor, "R D"], inputs: TokenBatch, batch: Batch, rows: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        """The clipped squared error of the values, times ``value_coef``."""
        loss, metrics = value_loss(
            self._own_pass(inputs) if self.critic_adapter else self.value(hidden),
            gathered(batch.credit.values, rows, hidden.device),
            gathered(batch.credit.returns, rows, hidden.device),
            self.config.value_clip_range,
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
            "critic_adapter": adapter,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the update that `state_dict` was taken at."""
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        for parameter, saved in zip(self.critic_adapter, state["critic_adapter"], strict=True):
            parameter.copy_(saved)
