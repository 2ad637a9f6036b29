"""Parts of a run's config: what conf/ says, and what a test changes."""

from __future__ import annotations

from functools import partial

from homeostat.config.bots import ScriptedBotConfig
from homeostat.config.register import config_part
from homeostat.config.reward import SetPointConfig

ppo_config = partial(config_part, "trainer=ppo")
grpo_config = partial(config_part, "trainer=grpo")
dpo_config = partial(config_part, "trainer=dpo")
kl_config = partial(config_part, "trainer=ppo", "kl")
steer_heal_config = partial(config_part, "trainer=steer_heal")
vector_config = partial(steer_heal_config, "vector")
dose_config = partial(steer_heal_config, "dose")
filter_config = partial(steer_heal_config, "filter")
heal_config = partial(steer_heal_config, "heal")
barrier_config = partial(steer_heal_config, "barrier")
stages_config = partial(steer_heal_config, "stages")
tiny_config = partial(config_part, "model=tiny_random")
lora_config = partial(config_part, "lora")
wandb_config = partial(config_part, "tracker=wandb")
signals_config = partial(config_part, "signals", intrinsic=None, affect=None)
intrinsic_config = partial(config_part, "signals", "intrinsic")
affect_config = partial(config_part, "signals", "affect")
set_point_config = partial(SetPointConfig, weight=1.0, min_tolerance=1e-6)
scripted_config = partial(ScriptedBotConfig, schedule=["opening"])
