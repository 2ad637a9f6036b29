"""Healing: steered completions become an adapter, under a barrier against drift.

    read the reference's hidden states at every completion token, once
    repeat epochs times:
        for each minibatch of completions, in an order of this epoch's own:
            D = aggregate of KL(student || reference) over all its completion tokens
            loss = mean NLL of those tokens, weighted where they have weights,
                + coef relu(D - tau) + spectral_coef mean sigma_max(B A)
            one AdamW step on the newest adapter; the barrier's control takes in D
        NLL of the completions that were held out

An aggregate such as a maximum needs all tokens of its minibatch at once, so a minibatch is never
split. One that has more padded tokens than micro_batch_tokens keeps only the inputs of each block
and computes the rest again in the backward pass.

Source: the founding document, steer-heal-love (wassname). **Differs:** the reference is read once
and not in every epoch; tau may be read off a pilot, or move until the barrier fires in a given
share of the steps; its weight may follow D.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from homeostat.config.steering import AGGREGATES, BarrierConfig, HealConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.forward import (
    READ_TOKENS,
    batches_by_length,
    forward,
    make_batch,
    read_in_batches,
    read_prefix,
)
from homeostat.models.logprobs import predicting_hidden
from homeostat.steering.barriers import (
    FixedControl,
    LoraPair,
    aggregate_divergence,
    completion_statistics,
    gradient_norm,
    make_control,
    quantile_tau,
    spectral_penalty,
)
from homeostat.steering.completions import Completion
from homeostat.steering.heal_result import (
    NAN,
    NOT_MEASURED,
    HealResult,
    divergence_row,
    round_metrics,
    silent_barrier_notice,
)
from homeostat.steering.optimizer import make_optimizer, rate_at
from homeostat.types import Progress, TokenStream, silent

SPLIT, ORDER = 13, 17  # what a random number is for
LEAST_TAU = 1e-3  # nats; a tau of 0, such as that of a pilot's first step, has no logarithm to move


@dataclass(frozen=True)
class HealRound:
    """One round of healing: which it is, and with what it is done.

    Attributes:
        number: From 0.
        seed: Of the run; which completions are held out and their order follow from both.
        lr: Learning rate.
        tau: Threshold of the barrier, nats; None where `Heal.read_tau` is to find it.
        reference: How many of the student's rounds the reference has; 0 is the base.
        recompute: Whether every minibatch keeps only the inputs of each block.
    """

    number: int
    seed: int
    lr: float
    tau: float | None
    reference: int = 0
    recompute: bool = False


@dataclass(frozen=True)
class _Lesson:
    """What is trained on, and with what; without a control there is no barrier in the loss."""

    streams: Sequence[TokenStream]
    weights: Sequence[Tensor]
    references: Sequence[Tensor] | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    control: FixedControl | None


class Heal:
    """Trains the policy's newest adapter on completions.

    Attributes:
        optimizer: That goes on from where it is; None: a new one for the round.
        control_state: That the barrier's control goes on from, and after `run` where it has come
            to; None: from the config's coefficient and ``tau``.
        tau: Threshold of the barrier, nats; None until `read_tau`, and after `run` as the barrier's
            control has left it.
    """

    def __init__(
        self,
        config: HealConfig,
        barrier: BarrierConfig,
        *,
        policy: Policy,
        round: HealRound,
        optimizer: torch.optim.Optimizer | None = None,
        control_state: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.barrier = barrier
        self.policy = policy
        self.round = round
        self.tau = round.tau
        self.optimizer = optimizer
        self.control_state = control_state
        self.progress = progress

    def run(self, completions: Sequence[Completion]) -> HealResult:
        """Train on some completions.

        Returns:
            Rows of the steps, and metrics in nats per token: ``heal/nll`` and ``heal/divergence``
            are means over the last epoch's steps, ``heal/fired`` the share of all steps with D
            above tau, ``heal/gradient_ratio`` barrier to NLL, measured on each epoch's last step,
            since it costs two more backward passes.

        Raises:
            ValueError: A completion has no tokens, or tau is not known yet.
            HomeostatError: Too few completions, or a loss that is not finite.
        """
        with self.policy.keeping_lower():
            return self._run(completions)

    def _run(self, completions: Sequence[Completion]) -> HealResult:
        trained, held_out = self._split(completions)
        control = self._control()
        lesson = self._lesson(trained, control)
        validation = [self.mean_nll(held_out)] if held_out else []
        rows: list[dict[str, Any]] = []
        for epoch in range(self.config.epochs):
            rows += self._epoch(lesson, epoch)
            if held_out:
                validation.append(self.mean_nll(held_out))
        self.policy.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            spectral_norm = float(spectral_penalty(lora_pairs(self.policy)))
        if control is not None:
            self.tau, self.control_state = control.tau, control.state_dict()
        metrics = round_metrics(rows, validation, control, spectral_norm)
        notice = silent_barrier_notice(rows, self.barrier, control)
        return HealResult(metrics, rows, validation, notice)

    def pilot(self, completions: Sequence[Completion]) -> dict[str, list[float]]:
        """Every aggregate at every step of one epoch without a barrier, nats.

        The same completions in the same minibatches as in the first epoch of `run`. The adapter is
        then what it was before.
        """
        trained, _ = self._split(completions)
        with unchanged(self.policy.adapter_parameters()):
            rows = self._epoch(self._lesson(trained, None), epoch=0)
        return {kind: [row["aggregates"][kind] for row in rows] for kind in AGGREGATES}

    def read_tau(self, completions: Sequence[Completion]) -> float:
        """Read tau off a pilot and take it over.

        Returns:
            What the barrier's own aggregate was above in ``firing_rate`` of the steps, nats;
            infinite without a divergence.
        """
        if self.barrier.divergence == "none":
            self.tau = float("inf")
        else:
            values = self.pilot(completions)[self.barrier.aggregate]
            self.tau = quantile_tau(values, self.barrier.firing_rate)
            if self.barrier.control == "rate":
                self.tau = max(self.tau, LEAST_TAU)
        return self.tau

    @torch.no_grad()
    def mean_nll(self, completions: Sequence[Completion]) -> float:
        """-log p of the completions' tokens under the policy as it is, nats per token."""
        streams = [completion.as_stream() for completion in completions]
        total = 0.0
        for part in batches_by_length([len(s.ids) for s in streams], READ_TOKENS):
            nll, _ = self._read([streams[i] for i in part], None)
            total += float(nll.sum())
        return total / sum(len(completion.ids) for completion in completions)

    def _split(
        self, completions: Sequence[Completion]
    ) -> tuple[list[Completion], list[Completion]]:
        """Completions to train on, and those held out."""
        for completion in completions:
            completion.require_tokens()
        share = self.config.validation
        trained = len(completions) - round(share * len(completions))
        if not trained:
            raise HomeostatError(
                f"{len(completions)} completions leave none to train on with "
                f"trainer.heal.validation={share}; lower it, or let more pass trainer.filter."
            )
        rng = np.random.default_rng([self.round.seed, SPLIT, self.round.number])
        order = rng.permutation(len(completions))
        shuffled = [completions[i] for i in order]
        return shuffled[:trained], shuffled[trained:]

    def _control(self) -> FixedControl | None:
        if self.barrier.divergence == "none":
            return None
        if self.tau is None:
            raise ValueError("tau=None is no threshold; give a number, or call read_tau first.")
        control = make_control(self.barrier, self.tau, self.round.number)
        if self.control_state is not None:
            control.load_state_dict(self.control_state)
        return control

    def _lesson(self, trained: Sequence[Completion], control: FixedControl | None) -> _Lesson:
        streams = [completion.as_stream() for completion in trained]
        optimizer = self.optimizer or make_optimizer(self.policy, self.config, self.round.lr)
        steps = self.config.epochs * self._parts(len(streams))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(rate_at, self.config, steps)
        )
        weights = [
            torch.tensor(c.weights or [1.0] * len(c.ids), device=self.policy.device)
            for c in trained
        ]
        references = self._references(streams)
        return _Lesson(streams, weights, references, optimizer, schedule, control)

    def _parts(self, completions: int) -> int:
        """Minibatches of an epoch."""
        return -(-completions // self.config.minibatch)

    @torch.no_grad()
    def _references(self, streams: Sequence[TokenStream]) -> list[Tensor] | None:
        """The reference's hidden states that predict each completion's tokens."""
        if self.barrier.divergence == "none":
            return None
        policy = self.policy

        def read(part: list[TokenStream], _places: list[int]) -> Sequence[Tensor]:
            hidden, _ = self._hidden(part)
            return torch.split(hidden, [sum(stream.response) for stream in part])

        with policy.as_of(self.round.reference):
            return read_in_batches(streams, read)

    def _epoch(self, lesson: _Lesson, epoch: int) -> list[dict[str, Any]]:
        """One step for each minibatch; the last one's gradients are measured."""
        count = len(lesson.streams)
        rng = np.random.default_rng([self.round.seed, ORDER, self.round.number, epoch])
        order = rng.permutation(count)
        parts = np.array_split(order, self._parts(count))
        rows = []
        for number, part in enumerate(parts, start=1):
            measured = number == len(parts)
            rows.append({"epoch": epoch} | self._step(lesson, part.tolist(), measured))
            tokens = sum(len(lesson.streams[i].ids) for i in part)
            self.progress(epoch * len(parts) + number, self.config.epochs * len(parts), tokens)
        return rows

    def _step(self, lesson: _Lesson, part: Sequence[int], measured: bool) -> dict[str, Any]:
        """One optimiser step on a minibatch; its row of the log."""
        streams = [lesson.streams[i] for i in part]
        references, control = lesson.references, lesson.control
        reference = None if references is None else torch.cat([references[i] for i in part])
        weight_R = torch.cat([lesson.weights[i] for i in part])
        padded = len(streams) * max(len(stream.ids) for stream in streams)
        large = padded > self.config.micro_batch_tokens
        with self.policy.recomputing(self.round.recompute or large):
            norms = self._gradient_norms(streams, weight_R, reference, control) if measured else {}
            nll_R, divergence_R = self._read(streams, reference)
            nll, barrier = (weight_R * nll_R).mean(), nll_R.new_zeros(())
            row: dict[str, Any] = {"nll": float(nll.detach())}
            row |= divergence_row(divergence_R, self.barrier.aggregate, control)
            row |= NOT_MEASURED | norms
            if divergence_R is not None and control is not None:
                barrier = control.loss(aggregate_divergence(divergence_R, self.barrier.aggregate))
            loss = nll + barrier
            if self.config.spectral_coef:
                loss = loss + self.config.spectral_coef * spectral_penalty(lora_pairs(self.policy))
            row |= {"lr": lesson.schedule.get_last_lr()[0]}
            row |= self._descend(lesson.optimizer, loss)
            lesson.schedule.step()
        if control is not None:
            control.update(row["divergence"])
        return row

    def _gradient_norms(
        self,
        streams: Sequence[TokenStream],
        weight_R: Float[Tensor, " R"],
        reference: Float[Tensor, "R D"] | None,
        control: FixedControl | None,
    ) -> dict[str, float]:
        """Norms of the gradient's two parts, the barrier's with its weight, and their ratio.

        Each part is read anew: one graph for both would have to be kept for the second, with
        everything that recomputing is there to let go.
        """
        parameters = self.policy.adapter_parameters()
        nll_R, _ = self._read(streams, None)
        nll_norm, barrier_norm = gradient_norm((weight_R * nll_R).mean(), parameters), 0.0
        if control is not None:
            _, divergence_R = self._read(streams, reference)
            assert divergence_R is not None
            loss = control.loss(aggregate_divergence(divergence_R, self.barrier.aggregate))
            barrier_norm = gradient_norm(loss, parameters)
        return {
            "nll_grad_norm": nll_norm,
            "barrier_grad_norm": barrier_norm,
            "gradient_ratio": barrier_norm / nll_norm if nll_norm else NAN,
        }

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> dict[str, float]:
        """Follow the loss downhill; refuse to where it is not finite."""
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        parameters = self.policy.adapter_parameters()
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        value = float(loss.detach())
        if not np.isfinite(value + norm):
            raise HomeostatError(
                f"the loss of healing round {self.round.number + 1} is {value} and its gradient "
                f"norm {norm}; lower trainer.lr={self.round.lr:g} or use dtype=float32. What "
                "earlier rounds learned is kept in the run folder."
            )
        optimizer.step()
        return {"loss": value, "grad_norm": norm}

    def _read(
        self, streams: Sequence[TokenStream], reference: Float[Tensor, "R D"] | None
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"] | None]:
        """-log p of every completion token in turn, and its divergence from the reference."""
        hidden, targets = self._hidden(streams)
        kind = "none" if reference is None else self.barrier.divergence
        return completion_statistics(hidden, targets, self.policy.unembed, reference, kind)

    def _hidden(self, streams: Sequence[TokenStream]) -> tuple[Tensor, Tensor]:
        """Hidden states that predict the completions' tokens, and the tokens; policy as it is."""
        batch = make_batch(self.policy, streams)
        final = forward(self.policy, batch, read_prefix(self.policy, batch))
        mask = batch.response_mask
        return predicting_hidden(final, mask), batch.input_ids[mask]


def lora_pairs(policy: Policy) -> list[LoraPair]:
    """A, B and scale of every layer that the policy's newest adapter adapts."""
    name = policy.rounds[-1]
    return [
        (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
        for module in policy.model.modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    ]


@contextmanager
def unchanged(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Afterwards the parameters are what they were, to the bit, and have no gradients."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data.copy_(value)
            parameter.grad = None
