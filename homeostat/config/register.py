"""From schema to Hydra, and from config to object.

A YAML file under ``conf/`` holds values only. `register` stores each schema in Hydra's ConfigStore
under ``schema/<group>/<option>``, so that a wrong key or type fails before anything heavy is
imported; what spans several fields is checked in ``__post_init__``. `build` turns a config into the
object that its ``_target_`` names: the config itself is the constructor's first argument, so a
schema and the code that it configures cannot drift apart.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object

from homeostat.config.bots import MixedBotConfig, ScriptedBotConfig
from homeostat.config.evals import EvalConfig, EvaluationConfig
from homeostat.config.model import EmbeddedModelConfig, PretrainedModelConfig, TinyModelConfig
from homeostat.config.reward import RewardConfig
from homeostat.config.run import RunConfig
from homeostat.config.signals import AffectConfig, IntrinsicConfig, SignalsConfig
from homeostat.config.steering import PersonaConfig, SteerHealConfig
from homeostat.config.trainers import DPOConfig, GRPOConfig, NoTrainerConfig, PPOConfig, RLOOConfig


def build(part: Any, **runtime: Any) -> Any:
    """The object that ``part._target_`` names, made from the config and runtime objects.

    Args:
        part: A config dataclass with ``_target_``.
        **runtime: What only exists while the program runs, by keyword.
    """
    return get_object(part._target_)(part, **runtime)


SCHEMAS: dict[str, type] = {
    "schema/model/embedded": EmbeddedModelConfig,
    "schema/model/pretrained": PretrainedModelConfig,
    "schema/model/tiny": TinyModelConfig,
    "schema/signals/base": SignalsConfig,
    "schema/signals/intrinsic": IntrinsicConfig,
    "schema/signals/affect": AffectConfig,
    "schema/reward/valence": RewardConfig,
    "schema/trainer/none": NoTrainerConfig,
    "schema/trainer/ppo": PPOConfig,
    "schema/trainer/grpo": GRPOConfig,
    "schema/trainer/rloo": RLOOConfig,
    "schema/trainer/dpo": DPOConfig,
    "schema/trainer/steer_heal": SteerHealConfig,
    "schema/persona": PersonaConfig,
    "schema/bot/scripted": ScriptedBotConfig,
    "schema/bot/mixed": MixedBotConfig,
    "schema/eval/homeostasis": EvalConfig,
    "schema/evaluation": EvaluationConfig,
    "schema/run": RunConfig,
}


def register() -> None:
    """Store every schema in Hydra's ConfigStore; safe to call twice."""
    store = ConfigStore.instance()
    for path, schema in SCHEMAS.items():
        group, _, name = path.rpartition("/")
        store.store(group=group, name=name, node=schema)
