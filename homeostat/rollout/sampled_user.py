"""What plays the users of `bot=model`: the frozen base, another model loaded here, an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.bots.endpoint import Endpoint
from homeostat.bots.user_model import Request, UserModel
from homeostat.config.bots import ModelBotConfig
from homeostat.config.model import LoraConfig, PretrainedModelConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.cache import code_digest, identity
from homeostat.models.check import check_model, require_sound
from homeostat.models.load import load_pretrained
from homeostat.rollout.generate import BATCH, Sampler

UNUSED = LoraConfig(rank=1, alpha=1.0, dropout=0.0, layers=[0.0, 1.0])  # is never on


class SampledUser:
    """A model that is sampled here, with its adapters off.

    An answer depends on its request alone, not on the batch that it is sampled in.
    """

    def __init__(self, config: ModelBotConfig, policy: Policy) -> None:
        self._policy = policy
        self._tokens, self._temperature = config.max_tokens, config.temperature
        sampling = [self._tokens, self._temperature]
        self.identity: list[Any] = [code_digest(), *identity(policy), *sampling]

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """See `UserModel.complete`; what an answer begins with is put into the model's mouth.

        Raises:
            HomeostatError: A talk has outgrown the model's context.
        """
        for start in range(0, len(requests), BATCH):
            part = requests[start : start + BATCH]
            for row, text in enumerate(self._sample(part)):
                yield start + row, text

    def _sample(self, requests: Sequence[Request]) -> list[str]:
        policy, sampler = self._policy, Sampler(self._policy, len(requests))
        numbers = [np.random.default_rng(r.seed).random(self._tokens) for r in requests]
        with policy.reference():
            sampler.append([policy.encode(r.talk).ids + self._ids(r.begun) for r in requests])
            replies = sampler.sample(np.stack(numbers), self._temperature)
        texts = [policy.tokenizer.decode(ids, skip_special_tokens=True) for ids in replies]
        return [r.begun + text for r, text in zip(requests, texts, strict=True)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def user_model(config: ModelBotConfig, policy: Policy) -> UserModel:
    """What plays the users, as ``config.source`` says; a local model is loaded now, and once.

    Args:
        config: Of the users.
        policy: Of the run; its base plays them, or says where another model is to lie.

    Raises:
        HomeostatError: The model cannot be loaded, is the base itself, or is not read here as it
            is; or the endpoint cannot be asked.
    """
    if config.source == "endpoint":
        return Endpoint(config)
    if config.source == "base":
        return SampledUser(config, policy)
    assert config.path is not None
    wanted = PretrainedModelConfig(name=Path(config.path).name, path=config.path)
    base = load_pretrained(wanted, policy.device, policy.dtype)
    if base.fingerprint == policy.base.fingerprint:
        raise HomeostatError(
            f"bot.path={config.path} is the model of this run itself; choose bot.source=base, "
            "which does not load it a second time."
        )
    other = Policy(base, UNUSED, seed=0)
    require_sound(check_model(other))
    return SampledUser(config, other)
