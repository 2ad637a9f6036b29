"""The memory plan against what autograd keeps, and against arithmetic by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from configs import (
    dpo_config,
    grpo_config,
    heal_config,
    lora_config,
    ppo_config,
    stages_config,
    steer_heal_config,
    tiny_config,
)
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig
from worlds import Parrots, make_trainer, own_reward, share_of_low_ids

from homeostat.config.register import config_part, target_of
from homeostat.config.run import RolloutConfig
from homeostat.config.trainers import (
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    TrainerConfig,
)
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel, finish
from homeostat.models.tiny import load_tiny
from homeostat.runs.advice import advise_memory
from homeostat.runs.memory import (
    MemoryPlan,
    activation_bytes,
    cache_bytes_per_token,
    episode_tokens,
    inner_width,
    memory_limit,
    plan_memory,
    saved_bytes,
)
from homeostat.steering.loop import SteerHeal
from homeostat.trainers.ppo import PPO

CPU = torch.device("cpu")


def test_activations_are_extrapolated_to_what_autograd_keeps(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    rows, width = 5, 200
    kept = saved_bytes(policy, rows, width)
    work = 4 * rows * width * policy.text_config.intermediate_size * 4
    found = activation_bytes(policy, rows * width, width, checkpointing=False)
    assert found - work == pytest.approx(kept, rel=0.02)


def test_below_the_adapter_nothing_is_kept(make_policy: Callable[..., Policy]) -> None:
    whole, half = make_policy(), make_policy(layers=(0.5, 1.0))
    assert saved_bytes(half, 2, 32) == pytest.approx(saved_bytes(whole, 2, 32) / 2, rel=0.15)


def test_saved_bytes_of_one_linear_layer_by_hand(make_policy: Callable[..., Policy]) -> None:
    """More rank means more of the adapter's inner states, r float32 per layer and token."""
    small, large = (saved_bytes(make_policy(rank=rank), 2, 32) for rank in (4, 12))
    blocks, linear_layers, tokens = 4, 7, 64
    assert large - small == blocks * linear_layers * tokens * 8 * 4


def test_the_plan_leaves_nothing_alive(make_policy: Callable[..., Policy]) -> None:
    def live_tensors_after_a_plan() -> int:
        saved_bytes(make_policy(), 2, 8)
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    first = live_tensors_after_a_plan()
    assert live_tensors_after_a_plan() == first
    assert live_tensors_after_a_plan() == first


@pytest.mark.parametrize(
    ("kind", "own", "inner"),
    [
        ("gpt2", {}, 128),
        ("gpt_neox", {"intermediate_size": 48}, 48),
        ("opt", {"ffn_dim": 40, "word_embed_proj_dim": 32}, 40),
    ],
)
def test_the_plan_reads_shapes_by_the_architectures_own_names(
    kind: str, own: dict[str, int], inner: int, make_policy: Callable[..., Policy]
) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, vocab_size=258, **shape, **own)
    model = AutoModelForCausalLM.from_config(config)
    policy = Policy(
        finish(model, make_policy().tokenizer, tiny_config(name=kind), CPU), lora_config(rank=2), 0
    )
    assert cache_bytes_per_token(policy) == 3 * 2 * 32 * 4
    assert inner_width(policy.text_config) == inner
    assert activation_bytes(policy, 64, 32, checkpointing=False) > 0


def test_recomputing_changes_memory_and_no_gradient(make_policy: Callable[..., Policy]) -> None:
    gradients = []
    for wanted in (False, True):
        trainer = make_trainer(
            make_policy(num_layers=2), own_reward(share_of_low_ids), gradient_checkpointing=wanted
        )
        batch = trainer.collect()
        trainer.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        trainer.minibatch(batch, [0, 1, 2])
        gradients.append([p.grad.clone() for p in trainer.policy.adapter_parameters()])
        layers = trainer.policy.base.model.model.layers
        assert not any(module.training for module in trainer.policy.model.modules())
        assert not any(layer.gradient_checkpointing for layer in layers)
    assert any(float(g.abs().max()) > 0 for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-7)


def test_recomputing_runs_every_block_twice(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(num_layers=3)
    calls = []
    for layer in policy.base.model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    for wanted, expected in ((False, 3), (True, 6)):
        calls.clear()
        with policy.recomputing(wanted):
            out = policy.trunk(torch.tensor([[1, 2, 3]]), use_cache=False).last_hidden_state
            out.sum().backward()
        assert len(calls) == expected


def test_the_plan_by_hand(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    base = sum(p.numel() for p in policy.model.parameters() if not p.requires_grad)
    adapter = sum(p.numel() for p in policy.adapter_parameters())
    config = ppo_config(batch_size=8, minibatches=2, micro_batch_tokens=10_000)
    found = plan_memory(policy, PPO.footprint(config, 100))
    shape = policy.text_config
    heads, width = shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
    assert found.weights == 4 * base
    assert found.adapters == 4 * adapter
    assert found.optimiser == 3 * 4 * adapter
    cache = 8 * 100 * 4 * 2 * heads * width * 4
    assert found.kv_cache == cache * 3 // 2 + 3 * 8 * shape.vocab_size * 4
    assert found.activations == activation_bytes(policy, 400, 100, False)
    assert found.logits == 5 * 400 * shape.vocab_size * 4
    standing = found.weights + found.adapters + found.optimiser
    assert found.total == standing + max(found.kv_cache, found.activations + found.logits)


def test_a_critic_with_an_adapter_counts_twice(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    shared, own = (
        plan_memory(policy, PPO.footprint(ppo_config(critic=critic), 100))
        for critic in ("shared", "lora")
    )
    assert own.adapters == 2 * shared.adapters
    assert own.activations == 2 * shared.activations
    assert own.weights == shared.weights


def test_healing_four_times_512_tokens_fits_beside_a_model_of_4b(
    make_policy: Callable[..., Policy],
) -> None:
    shape = Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=262_208,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).requires_grad_(False)
    tiny = make_policy().base
    base = BaseModel(model.eval(), tiny.tokenizer, "4b", "shape", tiny.template)
    policy = Policy(base, lora_config(rank=16), seed=0)
    config = steer_heal_config(batch_size=32, heal=heal_config(minibatch=4))
    found = plan_memory(policy, SteerHeal.footprint(config, 512))
    assert 7.5e9 < found.weights < 8e9
    assert found.total < 12e9
    kept = heal_config(minibatch=4, micro_batch_tokens=4 * 512)
    whole = plan_memory(policy, SteerHeal.footprint(replace(config, heal=kept), 512))
    assert whole.total > 12e9, "the blocks must be computed again for it"


def test_examples_and_turns_are_rows_that_are_longer() -> None:
    """100 tokens of a prompt and 28 of a completion, 48 of a reply that measures."""
    stages = stages_config(contexts=24, prompts=7, max_new_tokens=48, turns=1, examples=0)

    def rows(**changes: int) -> int:
        config = steer_heal_config(
            batch_size=1, max_new_tokens=28, stages=replace(stages, **changes)
        )
        return SteerHeal.footprint(config, 128).rows

    assert rows() == 37, "32 x 148 / 128"
    assert rows(examples=3) == 148, "four times as many"
    assert rows(turns=5) == 41, "7 x 5 x 148 / 128 beside the 37"
    assert rows(examples=3, turns=12) == 148, "7 x 15 x 148 / 128 is 122"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ppo_config(batch_size=16, minibatches=4, micro_batch_tokens=1200), 400),
        (ppo_config(batch_size=16, minibatches=4, micro_batch_tokens=250), 250),
        (grpo_config(batch_size=16, minibatches=4, micro_batch_tokens=50), 100),
        (dpo_config(minibatch_pairs=4, micro_batch_pairs=2), 400),
        (dpo_config(minibatch_pairs=2, micro_batch_pairs=8), 400),
    ],
)
def test_tokens_with_a_gradient(config: PPOConfig | GRPOConfig | DPOConfig, expected: int) -> None:
    found = target_of(config).footprint(config, 100)
    assert (found.gradient_tokens, found.length) == (expected, 100)


def test_an_episode_is_as_long_as_its_replies_may_be(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    short, long = (
        episode_tokens(policy, RolloutConfig(turns=2, max_new_tokens=n), Parrots()) for n in (5, 15)
    )
    assert long - short == 20


def test_a_run_that_cannot_fit_is_refused_with_advice() -> None:
    gigabyte = 10**9
    found = MemoryPlan(3 * gigabyte, 0, 0, gigabyte, 9 * gigabyte, gigabyte)
    assert found.total == 13 * gigabyte
    found.require(13e9, "trainer.micro_batch_tokens")
    with pytest.raises(HomeostatError) as caught:
        found.require(12e9, "trainer.micro_batch_tokens")
    assert str(caught.value) == (
        "this run needs about 13.0 GB, 9.0 of it for activations, and memory.limit_gb is 12.0; set "
        "trainer.gradient_checkpointing=true, or lower trainer.micro_batch_tokens."
    )
    weights = MemoryPlan(20 * gigabyte, 0, 0, gigabyte, 0, 0)
    with pytest.raises(HomeostatError, match=r"for weights.*dtype=bfloat16.*4bit"):
        weights.require(12e9, "trainer.micro_batch_tokens")
    cache = MemoryPlan(gigabyte, 0, 0, 20 * gigabyte, gigabyte, 0)
    with pytest.raises(HomeostatError, match=r"for kv cache.*rollout\.max_new_tokens"):
        cache.require(12e9, "trainer.micro_batch_tokens")


def test_the_limit_is_what_was_asked_for_or_what_is_there() -> None:
    assert memory_limit(CPU, 12.0, held=5) == 12e9
    assert memory_limit(CPU, None, held=10**15) > 10**15


def test_half_precision_keeps_the_adapter_exact() -> None:
    base = load_tiny(tiny_config(), CPU, torch.bfloat16)
    policy = Policy(base, lora_config(rank=4), 0)
    assert {p.dtype for p in policy.adapter_parameters()} == {torch.float32}
    trainer = make_trainer(policy, own_reward(share_of_low_ids), batch_size=8, max_steps=1)
    metrics = next(trainer.steps()).metrics
    assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    assert metrics["policy/first_ratio"] == pytest.approx(1, abs=0.02)
    assert metrics["optim/grad_norm"] > 0
    assert plan_memory(policy, trainer.footprint(trainer.config, 50)).weights == sum(
        2 * p.numel() for p in policy.model.parameters() if not p.requires_grad
    )


@pytest.mark.parametrize(
    ("trainer", "key"),
    [
        (ppo_config(), "lower eval.bootstrap_samples"),
        (config_part("trainer=none"), "lower eval.bootstrap_samples"),
        (steer_heal_config(), "lower trainer.stages.bootstrap_samples"),
    ],
)
def test_advice_for_arrays_that_do_not_fit_is_about_resampling(
    trainer: TrainerConfig, key: str
) -> None:
    with pytest.raises(MemoryError) as full:
        np.empty(10**16)
    advice = advise_memory(trainer, full.value)
    assert advice is not None
    assert key in advice
    assert "micro_batch" not in advice
    assert advise_memory(trainer, ValueError("Unable to allocate")) is None
