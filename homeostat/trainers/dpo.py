"""Direct preference optimisation in rounds, with homeostatic valence in place of the labels.

    repeat max_steps times:
        play conversations; at every turn sample group_size replies to what was said so far
        trace them once with the adapter on and once off: rewards, log-probs, reference log-probs
        pair the replies to one prompt by their rewards                  preferences.py
        keep the pairs of some conversations for measuring, train on the others    TRL's DPOTrainer
        measure both: accuracy, margins, and what became of the chosen replies' log-probability

Source: Rafailov et al. 2023, arXiv 2305.18290; the optional likelihood term as in Pang et al. 2024,
arXiv 2404.19733. **Differs:** pairs are sampled from the policy itself, anew in every round, and
ranked by the reward of the turn that they are, the bot's answer included: later turns are not
credited to them. The reference is the base, in every round, rather than the round's first policy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig as TRLConfig
from trl.trainer.dpo_trainer import DPOTrainer

from homeostat.config.trainers import DPOConfig
from homeostat.errors import HomeostatError
from homeostat.models.chat import pad
from homeostat.models.forward import forward, read_in_batches
from homeostat.models.logprobs import predicting_hidden, token_logprobs
from homeostat.reward.compose import Rewards
from homeostat.rollout.candidates import play_candidates
from homeostat.rollout.episodes import training_seeds
from homeostat.rollout.generate import BATCH
from homeostat.signals.reader import episode_record
from homeostat.trainers.base import AdapterTrainer, batch_metrics
from homeostat.trainers.losses import CHUNK_COPIES
from homeostat.trainers.preferences import Candidate, Pair, make_pairs, preference_metrics
from homeostat.types import Episode, Footprint, Metrics, Reading, TokenStream


class DPO(AdapterTrainer):
    """Rounds of sampling, ranking and training on preference pairs."""

    config: DPOConfig

    @classmethod
    def footprint(cls, config: DPOConfig, length: int) -> Footprint:
        """What training with this config will hold, for conversations of ``length`` tokens."""
        pairs = min(config.micro_batch_pairs, config.minibatch_pairs)
        return Footprint(
            rows=min(config.batch_size, BATCH),
            length=length,
            gradient_tokens=2 * pairs * length,
            logit_copies=CHUNK_COPIES,
            recomputes=config.gradient_checkpointing,
        )

    def step(self) -> tuple[Metrics, Sequence[Mapping[str, Any]]]:
        """One round."""
        config = self.config
        count = config.batch_size // config.group_size
        seeds = training_seeds(self.seed, self.done, count)
        with self.watch("generate"):
            groups = play_candidates(
                self.policy, self.bots, seeds, config.group_size, self.rollout, self.progress
            )
        episodes = [episode for group in groups for episode in group]
        talks = [episode.conversation for episode in episodes]
        with self.watch("trace"):
            readings = self.reader.measure(episodes)
            rewards = self.reward.score(talks, readings)
            newest = [reading.newest() for reading in readings]
            paid = [reward.newest() for reward in rewards]
            candidates = [
                newest_candidate(*one) for one in zip(episodes, newest, paid, strict=True)
            ]
        by_prompt = zip(*[iter(candidates)] * config.group_size, strict=True)
        pairs = [make_pairs(c, config.min_margin, config.max_length_ratio) for c in by_prompt]
        held_out = set(seeds[count - round(config.held_out * count) :])
        trained, kept = (
            [
                pair
                for group, pairs_of_group in zip(groups, pairs, strict=True)
                for pair in pairs_of_group
                if (group[0].seed in held_out) == held
            ]
            for held in (False, True)
        )
        metrics = batch_metrics(newest, paid, self.reader.affects)
        with self.watch("update"):
            metrics |= self._learn(trained, kept)
        chosen = {id(pair.chosen): True for pair in (*trained, *kept)}
        chosen |= {id(pair.rejected): False for pair in (*trained, *kept)}
        verdicts = [chosen.get(id(candidate)) for candidate in candidates]
        return metrics, self._records(episodes, readings, rewards, verdicts)

    def _learn(self, trained: Sequence[Pair], kept: Sequence[Pair]) -> Metrics:
        """Train on some pairs and measure all; without pairs the policy stays as it is."""
        beta = self.config.beta
        before = [r.logprob for pair in kept for r in (pair.chosen, pair.rejected)]
        metrics = {"held_out_before": preference_metrics(kept, before, beta)}
        loss = self._fit(trained) if trained else float("nan")
        for name, pairs in (("trained", trained), ("held_out", kept)):
            metrics[name] = preference_metrics(pairs, self.logprobs(pairs), beta)
        gaps = [pair.chosen.reward - pair.rejected.reward for pair in (*trained, *kept)]
        return {
            "dpo/pairs_trained": float(len(trained)),
            "dpo/pairs_held_out": float(len(kept)),
            "dpo/reward_gap": float(np.mean(gaps)) if gaps else float("nan"),
            "optim/loss": loss,
            "optim/lr": self.config.lr,
            "dpo/accuracy_held_out_before": metrics.pop("held_out_before")["accuracy"],
        } | {
            f"dpo/{key}_{name}": value
            for name, figures in metrics.items()
            for key, value in figures.items()
        }

    def _fit(self, pairs: Sequence[Pair]) -> float:
        """Train on pairs with TRL; returns the mean loss.

        Raises:
            HomeostatError: The loss is not finite.
        """
        config, policy = self.config, self.policy
        rows = [
            {
                "prompt_ids": list(pair.chosen.prompt),
                "chosen_ids": list(pair.chosen.ids),
                "rejected_ids": list(pair.rejected.ids),
                "ref_chosen_logps": pair.chosen.ref_logprob,
                "ref_rejected_logps": pair.rejected.ref_logprob,
            }
            for pair in pairs
        ]
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = config.lr
        schedule = LambdaLR(self.optimizer, lambda _: 1.0)
        with TemporaryDirectory() as folder, as_it_was(policy.model):
            trainer = PairTrainer(
                model=policy.model,
                args=self._arguments(folder),
                train_dataset=Dataset.from_list(rows),
                processing_class=policy.tokenizer,
                optimizers=(self.optimizer, schedule),
            )
            loss = float(trainer.train().training_loss)
        if not np.isfinite(loss):
            raise HomeostatError(
                f"the loss of round {self.done + 1} is {loss}; lower trainer.lr={config.lr:g} or "
                "use dtype=float32. What was learned before is kept in the run folder."
            )
        return loss

    def _arguments(self, folder: str) -> TRLConfig:
        config = self.config
        micro = min(config.micro_batch_pairs, config.minibatch_pairs)
        return TRLConfig(
            output_dir=folder,
            beta=config.beta,
            loss_type=["sigmoid", "sft"] if config.nll_coef else ["sigmoid"],
            loss_weights=[1.0, config.nll_coef] if config.nll_coef else None,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.minibatch_pairs // micro,
            max_grad_norm=config.max_grad_norm,
            max_length=None,
            seed=self.seed * 1_000_000 + self.done,
            use_cpu=self.policy.device.type == "cpu",
            bf16=False,
            gradient_checkpointing=config.gradient_checkpointing,
            disable_tqdm=True,
            logging_strategy="no",
            logging_nan_inf_filter=False,  # a loss that is not a number must not be passed over
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        )

    @torch.no_grad()
    def logprobs(self, pairs: Sequence[Pair]) -> list[float]:
        """Log-probability of each chosen and each rejected reply in turn, policy as it is, nats."""
        policy = self.policy
        replies = [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
        streams = [
            TokenStream(
                [*reply.prompt, *reply.ids],
                [-1] * len(reply.prompt) + [0] * len(reply.ids),
                [False] * len(reply.prompt) + [True] * len(reply.ids),
            )
            for reply in replies
        ]

        def read(part: list[TokenStream], places: list[int]) -> list[float]:
            batch = pad(part, policy.pad_id, policy.device)
            hidden = predicting_hidden(forward(policy, batch), batch.response_mask)
            targets = batch.input_ids[batch.response_mask]
            logprob_R = token_logprobs(hidden, targets, policy.unembed)
            sizes = [len(replies[i].ids) for i in places]
            return [float(logprob.sum()) for logprob in torch.split(logprob_R, sizes)]

        return read_in_batches(streams, read)

    def _records(
        self,
        episodes: Sequence[Episode],
        readings: Sequence[Reading],
        rewards: Sequence[Rewards],
        verdicts: Sequence[bool | None],
    ) -> list[dict[str, Any]]:
        """The candidates as they go to episodes.jsonl; ``chosen`` is None outside every pair."""
        measured = zip(episodes, readings, rewards, verdicts, strict=True)
        return [
            {
                "step": self.done + 1,
                "sample": episode.sample,
                "chosen": verdict,
                "valence": reward.valence.total_N.tolist(),
            }
            | episode_record(episode, reading, self.reader.affects)
            for episode, reading, reward, verdict in measured
        ]


def newest_candidate(episode: Episode, reading: Reading, reward: Rewards) -> Candidate:
    """The last reply of an episode, from what was measured on that turn alone."""
    turn = len(episode.conversation.turns) - 2
    tokens, ids = episode.tokens, episode.conversation.turns[turn].token_ids or ()
    prompt = tuple(tokens.ids[: tokens.turn.index(turn)])
    logprob, ref = reading.trace.logprob_R.sum(), reading.trace.ref_logprob_R.sum()
    return Candidate(prompt, tuple(ids), float(reward.total_N[-1]), float(logprob), float(ref))


class PairTrainer(DPOTrainer):
    """TRL's trainer on pairs that are token ids already, the reference's log-probs beside them.

    TRL would render and tokenise the replies anew, and would make the policy at the round's start
    the reference, as a second adapter.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model.delete_adapter("ref")
        self.precompute_ref_logps = True
        self.remove_callback(PrinterCallback)

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any) -> Dataset:
        del arguments
        return dataset


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Afterwards the model evaluates, and has the forward method that it had before."""
    causal = model.get_base_model()
    forward_before = vars(causal).get("forward")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        vars(causal).pop("forward", None)
        if forward_before is not None:
            causal.forward = forward_before
        model.eval()
