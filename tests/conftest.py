"""A tiny random policy, the composed config, and no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

from collections.abc import Callable, Sequence
from pathlib import Path

# Imported before homeostat, or the type-checking import hook compiles all of them anew.
import peft  # noqa: F401
import pytest
import torch
import transformers.models.bloom.modeling_bloom
import transformers.models.llama.modeling_llama  # noqa: F401
from configs import lora_config, tiny_config
from omegaconf import OmegaConf

from homeostat.config.register import compose_run
from homeostat.config.run import RunConfig
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.types import Conversation, Turn

# Tiny tensors: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def composed() -> Callable[..., RunConfig]:
    """Compose the run config, as the command line does; the same on any processor."""

    def make(*overrides: str) -> RunConfig:
        config = OmegaConf.to_object(compose_run("dtype=float32", *overrides))
        assert isinstance(config, RunConfig)
        return config

    return make


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    """A fresh tiny policy; the adapter does nothing until it is trained or `stir`red."""

    def make(
        seed: int = 0, rank: int = 4, layers: Sequence[float] = (0.0, 1.0), num_layers: int = 4
    ) -> Policy:
        config = tiny_config(num_layers=num_layers)
        base = load_tiny(config, torch.device("cpu"), torch.float32)
        return Policy(base, lora_config(rank=rank, alpha=8.0, layers=list(layers)), seed)

    return make


@pytest.fixture
def stir() -> Callable[[Policy], None]:
    """Give the adapter weights that change what the policy says."""

    def change(policy: Policy, scale: float = 0.3, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in policy.adapter_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(scale * noise)

    return change


@pytest.fixture
def talk(make_policy: Callable[..., Policy]) -> Callable[..., Conversation]:
    """A conversation from alternating texts, user first; assistant texts count as sampled."""
    tokenizer = make_policy().tokenizer

    def make(*texts: str, ended: bool = True) -> Conversation:
        turns = []
        for i, text in enumerate(texts):
            if i % 2 == 0:
                turns.append(Turn("user", text))
            else:
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                end = [tokenizer.eos_token_id] if ended else []
                turns.append(Turn("assistant", text, token_ids=(*ids, *end)))
        return Conversation(tuple(turns))

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(folder))
    return folder
