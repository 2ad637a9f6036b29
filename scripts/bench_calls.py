"""What benchmarks share: the embedded model, bare forward passes, and rounds against a clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from homeostat.config.register import compose_run
from homeostat.config.run import RunConfig
from homeostat.models.adapters import Policy
from homeostat.models.forward import forward, read_prefix
from homeostat.rollout.generate import Sampler
from homeostat.types import TokenBatch

MODEL = "smollm2_135m"
ADAPTER_STD = 0.02

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)


def run_config() -> RunConfig:
    """The run config with the embedded model in float32, as the command line composes it."""
    config = OmegaConf.to_object(compose_run(f"model={MODEL}", "dtype=float32"))
    assert isinstance(config, RunConfig)
    return config


def stir_adapter(policy: Policy) -> None:
    """Small random weights where a fresh adapter has zeros, so that it changes the policy."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(ADAPTER_STD * torch.randn(weight.shape, generator=generator))


class Talkative(Policy):
    """A policy that goes on after the end-of-turn token, up to the token limit."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """An id that the model cannot sample."""
        return (int(self.text_config.vocab_size),)


def sample(policy: Policy, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Replies of a talkative policy to all prompts, by homeostat."""
    sampler = Sampler(policy, len(prompts))
    sampler.append(prompts)
    uniforms = np.random.default_rng(0).random((len(prompts), new_tokens))
    assert all(len(reply) == new_tokens for reply in sampler.sample(uniforms))


@torch.no_grad()
def generate(policy: Policy, prompts: Tensor, new_tokens: int, cache: str | None = None) -> None:
    """Replies to all prompts, by transformers with a cache of some kind; None = its default."""
    model = policy.model.get_base_model()
    model.generation_config.eos_token_id = None
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=policy.pad_id,
        cache_implementation=cache,
    )
    assert ids.shape == (len(prompts), prompts.shape[1] + new_tokens)


@torch.no_grad()
def full_logits(policy: Policy, batches: Iterable[TokenBatch]) -> None:
    """The causal language model as it is, its logits thrown away."""
    causal = policy.model.get_base_model()
    for batch in batches:
        causal(batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)


@torch.no_grad()
def trunk_only(policy: Policy, batches: Iterable[TokenBatch]) -> None:
    """The model without its unembedding, its hidden states thrown away."""
    for batch in batches:
        policy.trunk(batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)


@torch.no_grad()
def shared_trunk(policy: Policy, batches: Iterable[TokenBatch]) -> None:
    """The trunk as `trace` runs it: what all rows of a batch begin with is read once."""
    for batch in batches:
        forward(policy, batch, read_prefix(policy, batch))


def without_adapter(policy: Policy, call: Call) -> None:
    """The call, made of the base model."""
    with policy.reference():
        call()


def time_rounds(
    calls: Mapping[Name, Call], repeats: int, device: torch.device
) -> dict[Name, list[float]]:
    """Seconds of every call in every round after one warm-up, in alternating order."""
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        print(f"round {number} of {repeats}" if number else "warm-up", file=sys.stderr)
        for name in list(calls)[:: 1 if number % 2 else -1]:
            spent = seconds_of(calls[name], device)
            if number:
                seconds[name].append(spent)
    return seconds


def seconds_of(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, until the device has finished."""
    _finish_work(device)
    started = time.perf_counter()
    call()
    _finish_work(device)
    return time.perf_counter() - started


def _finish_work(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
