"""Proximal policy optimisation over whole conversations, with homeostatic valence as the reward.

    repeat max_steps times:
        play a batch of episodes against the bots                     policy + adapter, sampled at 1
        trace them once: log-probs, values, signals                   and once with the adapter off
        reward of a token = - kl_coef * log(policy / reference), plus the turn's valence at its end
        advantages by GAE over all response tokens of an episode, whitened over the batch
        for each epoch, for each minibatch of episodes:
            clipped surrogate + value_coef * clipped value loss - entropy_coef * entropy
        stop the epochs early once the policy has moved target_kl away

Departures from Schulman et al. 2017 (arXiv 1707.06347): old log-probs come from the tracing pass
rather than from sampling, so that the first ratio is 1 up to rounding; the critic is a linear head
on the policy's own final hidden state (one trunk, no second model); the loss of a minibatch is
averaged over its tokens, not over its episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.bots.scripted import Bots
from homeostat.config import PPOConfig, RolloutConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.logprobs import TokenStatistics, predicting_hidden, token_statistics
from homeostat.reward.compose import Reward, Rewards, token_rewards
from homeostat.rollout.episodes import play, training_seeds
from homeostat.signals.reader import Readings, SignalReader, episode_record
from homeostat.signals.trace import batches_by_length
from homeostat.timing import Stopwatch
from homeostat.trainers.advantages import gae, whiten
from homeostat.trainers.losses import Metrics, ppo_policy_loss, ppo_value_loss
from homeostat.types import Conversation, Episode, Progress, StepResult, silent


@dataclass(frozen=True)
class Batch:
    """One update's experience; the ragged lists hold one array per episode, over its tokens."""

    episodes: Sequence[Episode]
    readings: Readings
    rewards: Rewards
    logprobs: Sequence[Float[np.ndarray, " _"]]
    values: Sequence[Float[np.ndarray, " _"]]
    advantages: Sequence[Float[np.ndarray, " _"]]
    returns: Sequence[Float[np.ndarray, " _"]]

    @property
    def conversations(self) -> list[Conversation]:
        """The conversations of the episodes."""
        return [episode.conversation for episode in self.episodes]


class PPO:
    """The PPO trainer; `steps` yields after every update."""

    def __init__(
        self,
        config: PPOConfig,
        *,
        policy: Policy,
        bots: Bots,
        reader: SignalReader,
        reward: Reward,
        rollout: RolloutConfig,
        seed: int,
        watch: Stopwatch,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.policy = policy
        self.bots = bots
        self.reader = reader
        self.reward = reward
        self.rollout = rollout
        self.seed = seed
        self.watch = watch
        self.progress = progress
        self.done = 0
        self.critic = nn.Linear(policy.hidden_size, 1).to(policy.device, torch.float32)
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": policy.adapter_parameters(), "lr": config.lr},
                {"params": list(self.critic.parameters()), "lr": config.value_lr},
            ],
            weight_decay=0.0,
        )
        self._base_lrs = [config.lr, config.value_lr]

    def value(self, hidden: Float[Tensor, "R D"]) -> Float[Tensor, " R"]:
        """The critic's estimate from final hidden states that precede each token."""
        estimate: Float[Tensor, " R"] = self.critic(hidden.float())[:, 0]
        return estimate

    def steps(self) -> Iterator[StepResult]:
        """Train; yields after every update, and may be left at any yield."""
        while self.done < self.config.max_steps:
            batch = self.collect()
            with self.watch("update"):
                metrics = self.update(batch)
            self.done += 1
            yield StepResult(
                step=self.done,
                metrics=describe(batch) | metrics,
                episodes=self._records(batch),
            )

    def collect(self) -> Batch:
        """Play one batch of episodes, measure and reward them, and estimate advantages."""
        config = self.config
        seeds = training_seeds(self.seed, self.done, config.batch_size)
        with self.watch("generate"):
            episodes = play(self.policy, self.bots, seeds, self.rollout, progress=self.progress)
        talks = [episode.conversation for episode in episodes]
        with self.watch("trace"):
            traces = self.reader.trace(talks, critic=self.value)
            readings = self.reader.read(talks, traces)
            rewards = self.reward.score(talks, readings)
        values, advantages, returns = [], [], []
        for i, (talk, found) in enumerate(zip(talks, traces, strict=True)):
            own = rewards.total_N[readings.table.conversation_N == i]
            per_token = token_rewards(found, talk.assistant_turns, own, config.kl_coef)
            if found.value_R is None:
                raise ValueError("PPO needs a trace with the critic's values.")
            value = found.value_R.astype(np.float64)
            advantage, target = gae(per_token, value, config.gamma, config.gae_lambda)
            values.append(value)
            advantages.append(advantage)
            returns.append(target)
        if config.whiten_advantages:
            flat = whiten(np.concatenate(advantages))
            advantages = np.split(flat, np.cumsum([len(a) for a in advantages])[:-1])
        logprobs = [found.logprob_R for found in traces]
        return Batch(episodes, readings, rewards, logprobs, values, advantages, returns)

    def update(self, batch: Batch) -> Metrics:
        """Several epochs of minibatch steps on one batch; stops early at ``target_kl``."""
        config = self.config
        rng = np.random.default_rng([self.seed, self.done])
        warm = min(1.0, (self.done + 1) / max(1, config.warmup_steps))
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * warm
        seen: list[Metrics] = []
        for _ in range(config.epochs):
            order = rng.permutation(len(batch.episodes))
            for rows in np.array_split(order, min(config.minibatches, len(order))):
                seen.append(self.minibatch(batch, rows.tolist()))
            if config.target_kl and seen[-1]["policy/approx_kl"] > config.target_kl:
                break
        merged = {key: float(np.mean([m[key] for m in seen])) for key in seen[0]}
        merged["policy/first_ratio"] = seen[0]["policy/ratio"]
        merged["policy/approx_kl"] = seen[-1]["policy/approx_kl"]
        merged["optim/minibatches"] = float(len(seen))
        merged["optim/lr"] = self._base_lrs[0] * warm
        return merged

    def minibatch(self, batch: Batch, rows: Sequence[int]) -> Metrics:
        """One optimiser step on some episodes, in micro-batches that fit into memory.

        Raises:
            HomeostatError: The loss or its gradient is not finite; the weights stay as they were.
        """
        tokens = sum(len(batch.logprobs[row]) for row in rows)
        talks = batch.conversations
        lengths = [len(self.policy.encode(talks[row]).ids) for row in rows]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in batches_by_length(lengths, self.config.micro_batch_tokens):
            chosen = [rows[i] for i in part]
            loss, metrics = self._loss(batch, chosen)
            torch.autograd.backward(loss / tokens)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not np.isfinite(norm + sums["loss"]):
            raise HomeostatError(
                f"the loss of update {self.done + 1} is {sums['loss'] / tokens} and its gradient "
                f"norm {norm}; lower trainer.lr={self.config.lr:g} or use dtype=float32. What was "
                "learned before is kept in the run folder."
            )
        self.optimizer.step()
        means = {f"policy/{k}": v / tokens for k, v in sums.items() if k in ("ratio", "approx_kl")}
        return means | {
            "policy/clip_fraction": sums["clipped"] / tokens,
            "optim/loss": sums["loss"] / tokens,
            "critic/mean_squared_error": sums["squared_error"] / tokens,
            "optim/grad_norm": norm,
        }

    def _loss(self, batch: Batch, rows: Sequence[int]) -> tuple[Tensor, Metrics]:
        """The PPO loss of some episodes, summed over their response tokens."""
        config = self.config
        talks = batch.conversations
        stats, hidden = self._forward([talks[row] for row in rows])

        def gathered(arrays: Sequence[np.ndarray]) -> Tensor:
            flat = np.concatenate([arrays[row] for row in rows])
            return torch.from_numpy(flat).to(hidden.device, torch.float32)

        policy_loss, metrics = ppo_policy_loss(
            stats.logprob, gathered(batch.logprobs), gathered(batch.advantages), config.clip_range
        )
        value_loss, value_metrics = ppo_value_loss(
            self.value(hidden),
            gathered(batch.values),
            gathered(batch.returns),
            config.value_clip_range,
        )
        loss = policy_loss + config.value_coef * value_loss
        if config.entropy_coef:
            loss = loss - config.entropy_coef * stats.entropy.sum()
        return loss, metrics | value_metrics | {"loss": float(loss.detach())}

    def _forward(self, talks: Sequence[Conversation]) -> tuple[TokenStatistics, Tensor]:
        """Statistics of the response tokens with gradients, in the order of the trace."""
        policy = self.policy
        batch = pad([policy.encode(talk) for talk in talks], policy.pad_id, policy.device)
        final = policy.trunk(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False
        ).last_hidden_state
        hidden = predicting_hidden(final, batch.response_mask)
        targets = batch.input_ids[batch.response_mask]
        return token_statistics(hidden, targets, policy.unembed), hidden

    def _records(self, batch: Batch) -> list[dict[str, Any]]:
        """The episodes of a batch as they go to episodes.jsonl."""
        valence_N = batch.rewards.valence.total_N
        return [
            {
                "step": self.done,
                "valence": valence_N[batch.readings.table.conversation_N == i].tolist(),
            }
            | episode_record(episode, batch.readings, i, self.reader.affects)
            for i, episode in enumerate(batch.episodes)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the adapter; randomness follows from seed and step."""
        return {
            "done": self.done,
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the update that `state_dict` was taken at."""
        self.done = int(state["done"])
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])


def describe(batch: Batch) -> Metrics:
    """Means over a batch of episodes, keyed ``area/name``."""
    table, rewards = batch.readings.table, batch.rewards
    traces = batch.readings.traces
    kl = np.concatenate([t.kl_R for t in traces])
    metrics = {
        "reward/total": float(rewards.total_N.mean()),
        "reward/valence": float(rewards.valence.total_N.mean()),
        "policy/kl_nats_per_token": float(kl.mean()),
        "rollout/response_tokens": float(len(kl)),
        "critic/value_mean": float(np.concatenate(list(batch.values)).mean()),
    }
    for column, name in enumerate(rewards.valence.names):
        metrics[f"reward/term/{name}"] = float(rewards.valence.terms_NS[:, column].mean())
    for name, term in rewards.own_terms.items():
        metrics[f"reward/own/{name}"] = float(term.mean())
    for name in table.names:
        metrics[f"signal/{name}_mean"] = float(np.nanmean(table.column(name)))
    for name, drift in batch.readings.drift.items():
        metrics[f"perception/drift_{name}"] = drift
    return metrics
