"""Models of well-known shapes with random weights, and the small worlds that they are trained in.

Nothing is downloaded: the shapes are the published ones, the weights are drawn on the device, and
the tokenizer is that of the tiny model, whose ids every vocabulary here has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from homeostat.config.model import LoraConfig
from homeostat.config.register import build, compose_run, config_part, target_of
from homeostat.config.reward import RewardConfig
from homeostat.config.run import RolloutConfig, RunConfig
from homeostat.config.trainers import TrainerConfig
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.models.template import chat_template
from homeostat.models.tiny import byte_tokenizer
from homeostat.reward.compose import Reward
from homeostat.runs.memory import MemoryPlan, plan_memory
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.types import Bot, Bots, Conversation, Trace, Turn

CAP_BYTES = 12e9
DEFAULT = "Qwen2.5-0.5B"  # the shape of parts that take but one
SET_POINT = 3.0  # nats
LETTERS_PER_TOKEN = 4  # of English under the models' own tokenizers, about

# Of the text part, as published with each model.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
    },
    "gemma-3-4b": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
    },
}
# What shrinking puts in their place; six blocks, since every sixth of gemma looks back over all.
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 512,
    "sliding_window": 32,
}


@dataclass(frozen=True)
class Place:
    """Where parts run.

    Attributes:
        device: Of every model.
        tiny: Whether shapes and settings are shrunk.
    """

    device: torch.device
    tiny: bool


class Brief:
    """A population whose users say the first quarter of what they would.

    The byte tokenizer makes a token of every letter; cut down, an episode has about as many tokens
    as under the models' own tokenizers.
    """

    def __init__(self, bots: Bots) -> None:
        self._bots = bots

    def spawn(self, seed: int) -> Bot:
        """The user of episode ``seed``."""
        bot = self._bots.spawn(seed)

        def cut(turn: Turn) -> Turn:
            return replace(turn, text=turn.text[: -(-len(turn.text) // LETTERS_PER_TOKEN)])

        made: Any = SimpleNamespace(
            name=bot.name,
            opening=lambda: cut(bot.opening()),
            answer=lambda reply: cut(bot.answer(reply)),
        )
        return made  # type: ignore[no-any-return]


class Parrots:
    """All seeds are one user, who says the same whatever happens."""

    def spawn(self, seed: int) -> Bot:
        """The user of any episode."""
        del seed
        made: Any = SimpleNamespace(
            name="parrot",
            opening=lambda: Turn("user", "hi"),
            answer=lambda _reply: Turn("user", "go on"),
        )
        return made  # type: ignore[no-any-return]


def surprise_at_the_set_point(
    conversation: Conversation, signals: Mapping[str, Any], trace: Trace
) -> list[float]:
    """Minus the distance of each reply's mean surprise from the set point, nats.

    The mean of the surprise is the entropy; unlike the entropy it depends on what was said.
    """
    del signals
    surprises = [-trace.logprob_R[trace.turn_R == turn] for turn in conversation.assistant_turns]
    return [-abs(float(own.mean()) - SET_POINT) for own in surprises]


def architecture(name: str, tiny: bool) -> Any:
    """The config of a shape, whole or shrunk."""
    shape = dict(SHAPES[name])
    if tiny:
        shape |= {key: value for key, value in TINY.items() if key in shape}
    return AutoConfig.for_model(**shape, tie_word_embeddings=True)


def random_model(name: str, place: Place, dtype: torch.dtype) -> Any:
    """A model of a shape; the same weights on every call on one device."""
    torch.manual_seed(0)
    with place.device:
        model = AutoModelForCausalLM.from_config(architecture(name, place.tiny), dtype=dtype)
    return model.requires_grad_(False).eval()


def make_policy(
    name: str, place: Place, dtype: torch.dtype, lora: LoraConfig, kind: type[Policy] = Policy
) -> Policy:
    """A policy of a shape with a fresh adapter.

    Args:
        name: Of the shape.
        place: Where; on the meta device there are no weights, and a plan can be made.
        dtype: Of the base's weights.
        lora: Of the adapter.
        kind: What to make.
    """
    tokenizer = byte_tokenizer()
    model = random_model(name, place, dtype)
    base = BaseModel(model, tokenizer, name, "random", chat_template(tokenizer))
    return kind(base, lora, seed=0)


def run_settings(trainer: str, tiny: bool) -> RunConfig:
    """What a run of ``scale=gpu12`` would get, or of ``scale=smoke`` where it is shrunk.

    Its model is not used, and affect is not read: random weights perceive nothing.
    """
    persona = ["persona=love"] if trainer == "steer_heal" else []
    scale = "smoke" if tiny else "gpu12"
    composed = compose_run(
        "model=tiny_random",
        "signals=[intrinsic]",
        "reward=intrinsic_only",
        f"trainer={trainer}",
        f"scale={scale}",
        *persona,
    )
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig)
    return config


def make_trainer(
    policy: Policy, config: TrainerConfig, rollout: RolloutConfig, bots: Bots
) -> PolicyGradient:
    """A trainer that is paid for a surprise at the set point."""
    signals = config_part("signals", affect=None, intrinsic=config_part("signals", "intrinsic"))
    reader = SignalReader(policy, signals, None)
    reader.base_norms = np.ones(len(reader.norm_layers))
    term = surprise_at_the_set_point
    own = {"_target_": f"{term.__module__}.{term.__name__}", "weight": 1.0}
    reward = Reward(RewardConfig(terms={"own": own}), {})
    world = World(policy, bots, reader, reward, rollout)
    return build(config, PolicyGradient, world=world, seed=0, watch=Stopwatch())


@dataclass(frozen=True)
class Fitted:
    """A trainer's config that fits under the cap.

    Attributes:
        config: Of the trainer.
        plan: What it will hold.
        length: Tokens of the longest conversation.
        changed: What the scale says otherwise; None for nothing.
    """

    config: Any
    plan: MemoryPlan
    length: int
    changed: str | None


def fitted(policy: Policy, config: TrainerConfig, length: int) -> Fitted:
    """The config itself if its plan is within the cap; or what has to be lowered until it is.

    Blocks are computed twice first, since that changes no result; then the batch is halved.

    Args:
        policy: Fresh.
        config: As the scale says.
        length: Tokens of the longest conversation.

    Raises:
        ValueError: Not even a fraction of the batch fits.
    """
    sizes = [config.batch_size >> halved for halved in range(5) if config.batch_size >> halved]
    for size in sizes:
        for recompute in (False, True):
            tried = replace(config, batch_size=size, gradient_checkpointing=recompute)
            plan = plan_memory(policy, target_of(tried).footprint(tried, length))
            if plan.total <= CAP_BYTES:
                changed = [f"with {size} episodes for {config.batch_size}"] * (size != sizes[0])
                changed += ["with checkpointing"] * recompute
                return Fitted(tried, plan, length, " and ".join(changed) or None)
    raise ValueError(f"{sizes[-1]} episodes of {length} tokens are planned above the cap.")


def random_rows(rows: int, tokens: int) -> list[list[int]]:
    """Ids of the byte tokenizer, the same number in every row."""
    drawn: list[list[int]] = np.random.default_rng(0).integers(0, 200, (rows, tokens)).tolist()
    return drawn
