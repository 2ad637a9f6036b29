"""The loop that PPO, GRPO and RLOO share; they differ in how they give credit to tokens.

    repeat max_steps times:
        play a batch of episodes against the bots                     policy + adapter, sampled at 1
        trace them once: log-probs, values, signals                   and once with the adapter off
        reward of a token = - kl_coef * k1, plus the turn's reward at its end
        advantages of the tokens                                      ppo.py, grpo.py, rloo.py
        with mask_truncated: go on without the tokens of replies that did not end
        for each epoch, for each minibatch of episodes:
            clipped surrogate + critic's loss, if there is one - entropy_coef * entropy
            + with kl_cov_share: what the tokens that narrow the policy most have moved
        stop the epochs early once the policy has moved target_kl away
        move the price of KL, and with entropy_target entropy_coef

Departures that all three share: old log-probs come from the tracing pass rather than from sampling,
so that the first ratio is 1 up to rounding; the loss of a minibatch is averaged over its tokens,
not over its episodes. With kl_estimator=k3 the penalty is part of the loss instead of the reward,
and so in units of the advantage: each estimator stands where its gradient is that of a KL. With
reward.pathwise=true what the policy's weights enter directly is part of the loss; see pathwise.py.
mask_truncated is the overlong filtering of Yu et al. 2025 (DAPO, arXiv 2503.14476, section 3.4), by
replies: the other replies of an episode still count, and so do all in what episodes are worth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.config.trainers import PolicyGradientConfig
from homeostat.errors import HomeostatError
from homeostat.models.chat import until_last_response
from homeostat.models.forward import batches_by_length, forward, make_batch, read_prefix
from homeostat.models.logprobs import TokenStatistics, predicting_hidden, token_statistics
from homeostat.reward.combine import added_up, decoupled, turn_terms, variance_shares
from homeostat.reward.compose import Rewards, token_rewards
from homeostat.rollout.episodes import play, training_seeds
from homeostat.rollout.generate import BATCH
from homeostat.signals.reader import episode_record
from homeostat.signals.trace import Critic, Pass, read_pass
from homeostat.trainers.base import AdapterTrainer, batch_metrics
from homeostat.trainers.batch import Batch, Credit, Ragged, gathered, reply_ends, response_turns
from homeostat.trainers.controllers import EntropyBonus, lr_factor, make_kl_controller
from homeostat.trainers.losses import (
    CHUNK_COPIES,
    covariances,
    highest,
    k3_loss,
    kl_cov_loss,
    policy_loss,
)
from homeostat.trainers.pathwise import gradient_share, pathwise_loss, split_replies
from homeostat.types import Footprint, Metrics, TokenBatch, TokenStream


class PolicyGradient(AdapterTrainer):
    """A trainer that weighs the log-probabilities of sampled tokens by their advantages."""

    config: PolicyGradientConfig

    def __init__(self, config: PolicyGradientConfig, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        self.kl = make_kl_controller(config.kl)
        self.entropy = EntropyBonus(config)
        self._base_lrs = [config.lr]

    @classmethod
    def footprint(cls, config: PolicyGradientConfig, length: int) -> Footprint:
        """What training with this config will hold, for episodes of ``length`` tokens."""
        episodes = -(-config.batch_size // min(config.minibatches, config.batch_size))
        return Footprint(
            rows=min(config.batch_size, BATCH),
            length=length,
            # Not a multiple of the longest: two that are shorter may fit where it does alone.
            gradient_tokens=min(episodes * length, max(length, config.micro_batch_tokens)),
            logit_copies=CHUNK_COPIES,
            recomputes=config.gradient_checkpointing,
        )

    @abstractmethod
    def credit(self, batch: Sequence[TokenStream], rewards: Ragged, values: Ragged) -> Credit:
        """Advantages of every response token.

        Args:
            batch: The episodes' tokens.
            rewards: Reward of each token.
            values: What the critic in the trace said of each token; empty without one.
        """

    def episode_seeds(self) -> list[int]:
        """Seed of each episode of the next update."""
        return training_seeds(self.seed, self.done, self.config.batch_size)

    def trace_critic(self) -> Critic | None:
        """A critic that reads the policy's own hidden states while they are traced."""
        return None

    def critic_loss(
        self, hidden: Float[Tensor, "R D"], inputs: TokenBatch, batch: Batch, rows: Sequence[int]
    ) -> tuple[Tensor, Metrics]:
        """What the critic adds to the loss of some episodes, summed over their tokens.

        Args:
            hidden: The policy's hidden states before each token, with gradients.
            inputs: The tokens that they come from.
            batch: The update's experience.
            rows: Which of its episodes ``inputs`` holds.
        """
        del inputs, batch, rows
        return hidden.new_zeros(()), {}

    def step(self) -> tuple[Metrics, Sequence[Mapping[str, Any]]]:
        """Collect one batch of episodes, learn from it, and move the price of KL."""
        with self.policy.keeping_lower():
            return self._step()

    def _step(self) -> tuple[Metrics, Sequence[Mapping[str, Any]]]:
        batch = self.collect()
        metrics = batch_metrics(batch.readings, batch.rewards, self.reader.affects)
        metrics |= batch.shares
        metrics["policy/kl_coef"] = self.kl.coef
        if self.config.entropy_target is not None:
            metrics["policy/entropy_coef"] = self.entropy.coef
        if batch.credit.values:
            metrics["critic/value_mean"] = float(np.concatenate(list(batch.credit.values)).mean())
        with self.watch("update"):
            metrics |= self.learn(batch)
        entropy = metrics["policy/entropy_nats_per_token"]
        self.kl.update(metrics["policy/kl_nats_per_token"], entropy)
        self.entropy.update(entropy)
        return metrics, self._records(batch)

    def learn(self, batch: Batch) -> Metrics:
        """Update on the replies that count; where none does the weights stay, and that is said."""
        if not self.config.mask_truncated:
            return self.update(batch)
        ends = [reply_ends(stream, self.policy.eos_ids) for stream in batch.streams]
        ended = [end for of_one in ends for end in of_one.values()]
        metrics = {"rollout/truncated_share": 1 - sum(ended) / len(ended)}
        if not any(ended):
            self.notices.append(
                f"{self.coming}: each of the {len(ended)} replies was cut off at "
                f"rollout.max_new_tokens={self.rollout.max_new_tokens} and is masked, so nothing "
                "was learned; raise it, or set trainer.mask_truncated=false."
            )
            return metrics | {"optim/minibatches": 0.0}
        turns = map(response_turns, batch.streams)
        kept = [
            np.array([of_one[turn] for turn in turn_R.tolist()])
            for of_one, turn_R in zip(ends, turns, strict=True)
        ]
        return metrics | self.update(batch.only(kept))

    def collect(self) -> Batch:
        """Play one batch of episodes, measure and reward them, and give credit to their tokens."""
        seeds = self.episode_seeds()
        with self.watch("generate"):
            episodes = play(self.policy, self.bots, seeds, self.rollout, progress=self.progress)
        talks = [episode.conversation for episode in episodes]
        streams = [until_last_response(episode.tokens) for episode in episodes]
        in_reward = self.kl.coef if self.kl_estimator == "k1" else 0.0
        with self.watch("trace"):
            readings = self.reader.measure(episodes, self.trace_critic())
            rewards = self.reward.score(talks, readings)
            paid, shares = self._combined(rewards)
            traces = [reading.trace for reading in readings]
            per_token = [
                token_rewards(trace, talk.assistant_turns, turns, in_reward)
                for talk, trace, turns in zip(talks, traces, paid, strict=True)
            ]
            values = [t.value_R.astype(np.float64) for t in traces if t.value_R is not None]
            credit = self.credit(streams, per_token, values)
        logprobs = [trace.logprob_R for trace in traces]
        references = [trace.ref_logprob_R for trace in traces]
        return Batch(episodes, streams, readings, rewards, logprobs, credit, shares, references)

    @property
    def compared(self) -> int | None:
        """Episodes that are compared with each other; None: all of a batch."""
        return None

    @property
    def kl_estimator(self) -> str:
        """``k1`` in the reward, ``k3`` in the loss, or ``pathwise`` in the place of k1."""
        estimator = self.config.kl_estimator
        return "pathwise" if self.reward.pathwise and estimator == "k1" else estimator

    def _combined(self, rewards: Sequence[Rewards]) -> tuple[Ragged, Metrics]:
        """What advantages are made of, by turn, and which terms its variance comes from."""
        terms = turn_terms(rewards, self.reward.mode)
        for name in self.reward.pathwise:
            del terms[name]
        paid: Ragged = [reward.total_N for reward in rewards]
        if self.reward.combine == "decoupled":
            terms = decoupled(terms, self.reward.weights, self.compared)
        if self.reward.combine == "decoupled" or self.reward.pathwise:
            paid = added_up(terms) if terms else [np.zeros_like(turns) for turns in paid]
        shares = variance_shares(terms, self.compared)
        return paid, {f"reward/share/{name}": share for name, share in shares.items()}

    def update(self, batch: Batch) -> Metrics:
        """Several epochs of minibatch steps on one batch; ends with one beyond ``target_kl``."""
        config = self.config
        rng = np.random.default_rng([self.seed, self.done])
        factor = lr_factor(self.done, config.warmup_steps, config.max_steps, config.lr_decay)
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        if config.kl_cov_share:
            batch = replace(batch, held_back=self._held_back(batch))
        seen: list[Metrics] = []
        for _ in range(config.epochs):
            order = rng.permutation(len(batch.episodes))
            for rows in np.array_split(order, min(config.minibatches, len(order))):
                seen.append(self.minibatch(batch, rows.tolist(), first=not seen))
                if config.target_kl and seen[-1]["policy/approx_kl"] > config.target_kl:
                    break
            else:
                continue
            break
        merged = {key: float(np.mean([m[key] for m in seen if key in m])) for key in seen[0]}
        merged["policy/first_ratio"] = seen[0]["policy/ratio"]
        merged["policy/approx_kl"] = seen[-1]["policy/approx_kl"]
        merged["optim/minibatches"] = float(len(seen))
        merged["optim/lr"] = config.lr * factor
        return merged

    def _held_back(self, batch: Batch) -> Ragged:
        """1 for the tokens that KL-Cov holds back, 0 for the others."""
        columns = (batch.logprobs, batch.credit.advantages)
        summands = covariances(*(np.concatenate(list(c)).astype(np.float64) for c in columns))
        chosen = highest(summands, self.config.kl_cov_share).astype(np.float64)
        return np.split(chosen, np.cumsum([len(own) for own in batch.logprobs])[:-1])

    def minibatch(self, batch: Batch, rows: Sequence[int], first: bool = False) -> Metrics:
        """One optimiser step on some episodes, in micro-batches that fit into memory.

        Args:
            batch: The update's experience.
            rows: Which of its episodes.
            first: Also say what share of the gradient is pathwise, in the first micro-batch: that
                takes a backward pass of its own.

        Raises:
            HomeostatError: The loss or its gradient is not finite; the weights stay as they were.
        """
        tokens = sum(len(batch.logprobs[row]) for row in rows)
        lengths = [len(batch.streams[row].ids) for row in rows]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        share: Metrics = {}
        for part in batches_by_length(lengths, self.config.micro_batch_tokens):
            with self.policy.recomputing(self.config.gradient_checkpointing):
                loss, direct, metrics = self._loss(batch, [rows[i] for i in part])
                looked_at = direct if first and not sums else None
                own = None if looked_at is None else self._gradient(looked_at / tokens)
                torch.autograd.backward(loss / tokens)
            if own is not None:
                whole = [parameter.grad for parameter in self.policy.adapter_parameters()]
                share["optim/pathwise_gradient_share"] = gradient_share(own, whole)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        means = {key: value / tokens for key, value in sums.items()} | share
        norm = self.clipped()
        if not np.isfinite(norm + means["optim/loss"]):
            raise HomeostatError(
                f"the loss of update {self.done + 1} is {means['optim/loss']} and its gradient "
                f"norm {norm}; lower trainer.lr={self.config.lr:g} or use dtype=float32. What was "
                "learned before is kept in the run folder."
            )
        self.optimizer.step()
        return means | {"optim/grad_norm": norm}

    def clipped(self) -> float:
        """Clip the gradient; returns the norm that the policy's had."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))

    def policy_weight(self) -> float:
        """What the policy's loss counts in this update, beside a critic's."""
        return 1.0

    def _gradient(self, loss: Tensor) -> list[Tensor | None]:
        """Of a part of the loss, by parameter of the adapter; the graph stays."""
        parameters = self.policy.adapter_parameters()
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))

    def _loss(self, batch: Batch, rows: Sequence[int]) -> tuple[Tensor, Tensor | None, Metrics]:
        """Of some episodes the loss, what of it is pathwise, metrics: all summed over tokens."""
        policy = self.policy
        inputs = make_batch(policy, [batch.streams[row] for row in rows])
        priced = self.kl_estimator == "pathwise" and self.kl.coef > 0
        reference = self._reference(inputs) if priced else None
        read = read_pass(policy, inputs, self._followed_layers)
        hidden = predicting_hidden(read.final, inputs.response_mask)
        targets = inputs.input_ids[inputs.response_mask]
        stats = token_statistics(hidden, targets, policy.unembed, reference)
        old = gathered(batch.logprobs, rows, hidden.device)
        loss, metrics = policy_loss(
            stats.logprob,
            old,
            gathered(batch.credit.advantages, rows, hidden.device),
            self.config.clip_range,
            self.config.clip_range_high,
        )
        weight = self.policy_weight()
        loss = weight * loss
        critic_loss, critic_metrics = self.critic_loss(hidden, inputs, batch, rows)
        loss, metrics = loss + critic_loss, metrics | critic_metrics
        if self.config.kl_estimator == "k3":
            of_base = gathered(batch.references, rows, hidden.device)
            price, price_metrics = k3_loss(stats.logprob, of_base)
            loss, metrics = loss + weight * self.kl.coef * price, metrics | price_metrics
        if batch.held_back:
            chosen = gathered(batch.held_back, rows, hidden.device)
            price, price_metrics = kl_cov_loss(stats.logprob, old, chosen)
            loss = loss + weight * self.config.kl_cov_coef * price
            metrics |= price_metrics | {"policy/kl_cov_share": float(chosen.sum())}
        if self.entropy.coef:
            loss = loss - weight * self.entropy.coef * stats.entropy.sum()
        direct = self._pathwise(inputs, read, stats) if self.reward.pathwise else None
        if direct is not None:
            loss = loss + direct
            metrics |= {"optim/pathwise_loss": float(direct.detach())}
        return loss, direct, metrics | {"optim/loss": float(loss.detach())}

    def _pathwise(self, inputs: TokenBatch, read: Pass, stats: TokenStatistics) -> Tensor:
        """The part of the loss whose gradient is that of the terms themselves."""
        layers, base_norms = self._followed_layers, self.reader.base_norms
        norm_RL = read.norms_at(layers, inputs.response_mask)
        unit = base_norms if layers and base_norms is not None else np.ones(0)
        replies = split_replies(inputs, stats, norm_RL, unit)
        loss = pathwise_loss(replies, self.reward.pathwise)
        if self.kl_estimator == "pathwise":
            loss = loss + self.kl.coef * stats.kl.sum()
        return self.policy_weight() * loss

    @property
    def _followed_layers(self) -> Sequence[int]:
        """Blocks whose norms have a gradient in the update."""
        return self.reader.norm_layers if "activation_norm" in self.reward.pathwise else ()

    @torch.no_grad()
    def _reference(self, inputs: TokenBatch) -> Float[Tensor, "R D"]:
        """Final hidden states before each response token with the adapter off."""
        with self.policy.reference():
            final = forward(self.policy, inputs, read_prefix(self.policy, inputs))
        return predicting_hidden(final, inputs.response_mask)

    def _records(self, batch: Batch) -> list[dict[str, Any]]:
        """The episodes of a batch as they go to episodes.jsonl."""
        measured = zip(batch.episodes, batch.readings, batch.rewards, strict=True)
        return [
            {
                "step": self.done + 1,
                "sample": episode.sample,
                "valence": reward.valence.total_N.tolist(),
            }
            | episode_record(episode, reading, self.reader.affects)
            for episode, reading, reward in measured
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the adapter."""
        return super().state_dict() | {
            "kl": self.kl.state_dict(),
            "entropy": self.entropy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the update that `state_dict` was taken at."""
        super().load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
        if "entropy" in state:  # a checkpoint from before it could move
            self.entropy.load_state_dict(state["entropy"])
