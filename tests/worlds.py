"""Small worlds with a known optimum, and trainers that play in them on the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from configs import intrinsic_config, kl_config, set_point_config, signals_config
from torch import Tensor

from homeostat.config.register import build, config_part
from homeostat.config.reward import RewardConfig
from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.forward import forward
from homeostat.reward.compose import Reward
from homeostat.reward.valence import SetPoint
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.types import Conversation, StepResult, Trace, Turn

TRAINERS = ("ppo", "grpo", "rloo")
LOW_IDS = 64  # a quarter of the byte tokenizer's ids
OPENINGS = ("a" * 40, "z" * 40)
SET_POINT = 3.0  # nats
NO_KL = kl_config(coef=0.0)


@dataclass
class Parrot:
    """A user who says the same thing whatever happens."""

    first: str = "hi"
    name: str = "parrot"

    def opening(self) -> Turn:
        return Turn("user", self.first)

    def answer(self, reply: str) -> Turn:  # noqa: ARG002
        return Turn("user", "go on")


class Parrots:
    """All seeds are the same user."""

    def spawn(self, seed: int) -> Parrot:  # noqa: ARG002
        return Parrot()


class TwoParrots:
    """Even and odd seeds begin differently."""

    def spawn(self, seed: int) -> Parrot:
        return Parrot(OPENINGS[seed % 2])


class Remembering:
    """A tokenizer that does no text twice: the parrots say little, and this is half the time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids = cache(
            lambda text, **options: tokenizer(text, add_special_tokens=False, **options)[
                "input_ids"
            ]
        )
        self._template = cache(
            lambda messages: tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        )

    def __call__(
        self, text: str, add_special_tokens: bool = False, **options: bool
    ) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": list(self._ids(text, **options))}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: bool) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        text: str = self._template(tuple(tuple(message.items()) for message in messages))
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def replies(conversation: Conversation) -> list[tuple[int, ...]]:
    return [conversation.turns[i].token_ids or () for i in conversation.assistant_turns]


def share_of_low_ids(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,  # noqa: ARG001
) -> list[float]:
    """Share of each reply's tokens that come from the first quarter of the vocabulary."""
    return [sum(t < LOW_IDS for t in reply) / len(reply) for reply in replies(conversation)]


def share_of_few_ids(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,  # noqa: ARG001
) -> list[float]:
    """Share of each reply's tokens that are among eight: the best policy is a narrow one."""
    return [sum(t < 8 for t in reply) / len(reply) for reply in replies(conversation)]


def share_the_opening_asks_for(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,  # noqa: ARG001
) -> list[float]:
    """Share of ids below 128 after one opening, above after the other: blindly one half."""
    low = conversation.turns[0].text[0] == "a"
    return [sum((t < 128) == low for t in reply) / len(reply) for reply in replies(conversation)]


def first_reply_decides(
    conversation: Conversation, signals: dict[str, Any], trace: Trace
) -> list[float]:
    """Nothing for the first reply itself; the last one is paid by what the first one was."""
    shares = share_of_low_ids(conversation, signals, trace)
    return [0.0] * (len(shares) - 1) + [shares[0]]


def nothing(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,  # noqa: ARG001
) -> list[float]:
    """Every reply is worth the same."""
    return [0.0 for _ in conversation.assistant_turns]


def worth_one(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,  # noqa: ARG001
) -> list[float]:
    """Every reply is worth one, so that a critic can be exact."""
    return [1.0 for _ in conversation.assistant_turns]


def surprise_at_the_set_point(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,
) -> list[float]:
    """Best where a reply's own surprise is at the set point: its mean is the entropy."""
    surprises = [-trace.logprob_R[trace.turn_R == i] for i in conversation.assistant_turns]
    return [-abs(float(own.mean()) - SET_POINT) for own in surprises]


@torch.no_grad()
def first_token(policy: Policy, opening: str = "hi") -> Tensor:
    """The probability of every id as the first of the reply: what was learned, without noise."""
    stream = policy.encode(Conversation((Turn("user", opening),)))
    final = forward(policy, pad([stream], policy.pad_id, policy.device))
    return policy.unembed(final[0, -1]).softmax(-1)


def chance_of_low_ids(policy: Policy) -> float:
    return float(first_token(policy)[:LOW_IDS].sum())


def chance_of_what_the_opening_asks_for(policy: Policy) -> float:
    low, high = (first_token(policy, opening) for opening in OPENINGS)
    return float(low[:128].sum() + high[128:].sum()) / 2


def own_reward(term: Callable[..., Sequence[float]], weight: float = 1.0) -> Reward:
    target = f"{term.__module__}.{term.__name__}"
    return Reward(RewardConfig(terms={"own": {"_target_": target, "weight": weight}}), {})


def held_at(points: dict[str, SetPoint], pathwise: bool = True, **options: Any) -> Reward:
    """Set points that are followed by their own derivative, or seen by the score function."""
    config = {name: set_point_config(weight=point.weight) for name, point in points.items()}
    return Reward(RewardConfig(set_points=config, pathwise=pathwise, **options), points)


def make_trainer(
    policy: Policy,
    reward: Reward,
    kind: str = "ppo",
    bots: Any = None,
    rollout: RolloutConfig | None = None,
    **options: Any,
) -> PolicyGradient:
    policy.tokenizer = Remembering(policy.tokenizer)
    template = replace(policy.base.template, tokenizer=policy.tokenizer)
    policy.base = replace(policy.base, template=template)
    reader = SignalReader(policy, signals_config(intrinsic=intrinsic_config()), None)
    reader.base_norms = np.ones(len(reader.norm_layers))
    settings: dict[str, Any] = {"lr": 2e-2, "batch_size": 32, "max_steps": 8, "epochs": 4}
    settings |= {"kl": NO_KL, "target_kl": None}
    trainer = build(
        config_part(f"trainer={kind}", **{**settings, **options}),
        PolicyGradient,
        world=World(
            policy,
            bots or Parrots(),
            reader,
            reward,
            rollout or config_part("rollout", turns=2, max_new_tokens=2),
        ),
        seed=0,
        watch=Stopwatch(),
    )
    return trainer


def metric(results: Sequence[StepResult], key: str = "reward/own/own") -> list[float]:
    return [result.metrics[key] for result in results]
