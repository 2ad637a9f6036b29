from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import lora_config, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.bake import verify_bake
from homeostat.models.check import check_model, require_sound, save_findings
from homeostat.models.load import finish
from homeostat.models.suitable import require_architecture
from homeostat.models.tiny import byte_tokenizer

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 80, 33, 12, 200, 7]])
GROUPED = {"num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma3_text": GROUPED | {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 4},
    "granite": GROUPED | {"logits_scaling": 8.0},
    "cohere": GROUPED | {"logit_scale": 0.0625},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "gpt2": {},
}


def random_model(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A model of 2 blocks and width 32 whose vocabulary is the byte tokenizer's."""
    tokenizer = byte_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(kind, **(shape | KINDS.get(kind, {}) | more))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).to(dtype)


def policy_of(model: Any, tokenizer: PreTrainedTokenizerFast | None = None) -> Policy:
    base = finish(model, tokenizer or byte_tokenizer(), tiny_config(name="mine"), CPU)
    return Policy(base, lora_config(rank=2), seed=0)


def said(policy: Policy) -> dict[str, str]:
    """What the check has to say, by its name."""
    return {f.name: f.sentence for f in check_model(policy) if f.sentence is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_sound_model_passes_every_check(kind: str) -> None:
    model = random_model(kind)
    require_architecture(model, "here")
    findings = check_model(policy_of(model))
    assert [f.sentence for f in findings] == [None] * len(findings)
    assert {"end of turn", "head", "batches"} <= {f.name for f in findings if f.fatal}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_fault(dtype: torch.dtype) -> None:
    assert said(policy_of(random_model("gemma3_text", dtype))) == {}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_the_models_own(kind: str) -> None:
    policy = policy_of(random_model(kind))
    own = policy.unembed(policy.trunk(input_ids=IDS, use_cache=False).last_hidden_state)
    true = policy.base.model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(own, true)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_the_blocks_learns(kind: str) -> None:
    policy = policy_of(random_model(kind))
    logits = policy.unembed(policy.trunk(input_ids=IDS, use_cache=False).last_hidden_state)
    logits.log_softmax(dim=-1)[..., 3].sum().backward()
    learning = [p for p in policy.adapter_parameters() if p.grad is not None and p.grad.any()]
    assert len(learning) == len(policy.adapter_parameters()) / 2  # B alone at first, as A B = 0
    expected = {"gpt2": 4, "gpt_neox": 4, "opt": 6}.get(kind, 7)
    assert len(learning) == 2 * expected


def test_merged_weights_say_what_the_adapter_says_also_where_they_lie_turned(
    stir: Callable[[Policy], None],
) -> None:
    policy = policy_of(random_model("gpt2"))
    stir(policy)
    assert verify_bake(policy, IDS) < 1e-3


def test_head_that_does_something_unknown_is_refused() -> None:
    model = random_model("llama")
    policy = policy_of(model)
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits)
    assert said(policy) == {}
    whole = model.forward
    model.forward = lambda *args, **options: _tripled(whole(*args, **options))
    (sentence,) = said(policy).values()
    assert "the log-probabilities of mine (llama) come out" in sentence
    with pytest.raises(HomeostatError, match="nats off here"):
        require_sound(check_model(policy))


def _tripled(output: Any) -> Any:
    output.logits = 3 * output.logits
    return output


def test_model_whose_rows_change_with_padding_is_refused() -> None:
    policy = policy_of(random_model("llama"))
    whole = policy.trunk.forward

    def without_mask(*args: Any, **options: Any) -> Any:
        return whole(*args, **{k: v for k, v in options.items() if k != "attention_mask"})

    policy.trunk.forward = without_mask
    sentences = said(policy)
    assert list(sentences) == ["batches"]
    assert "with the padding of a batch, so that rows would mix" in sentences["batches"]


def test_tokenizer_without_an_end_is_refused() -> None:
    tokenizer, model = byte_tokenizer(), random_model("llama", eos_token_id=None)
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    sentence = said(policy_of(model, tokenizer))["end of turn"]
    assert "the tokenizer of mine has no eos token" in sentence


def test_end_without_a_row_in_the_embedding_is_refused() -> None:
    model = random_model("llama")
    model.generation_config.eos_token_id = 5_000
    assert (
        "ends replies with id 5000, which its embedding of 258 rows has not"
        in (said(policy_of(model))["end of turn"])
    )


def test_padding_without_a_row_in_the_embedding_is_replaced_and_noted() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    policy = policy_of(random_model("llama"), tokenizer)
    assert tokenizer.pad_token_id == 258
    assert policy.pad_id == tokenizer.eos_token_id
    findings = check_model(policy)
    require_sound(findings)
    noted = {f.name: f.sentence for f in findings if f.sentence}
    assert "the padding token 258 has no row in the embedding of 258" in str(noted["padding"])
    assert "1 tokens of the tokenizer have no row" in str(noted["vocabulary"])


def test_weights_that_are_left_out_are_noted() -> None:
    policy = policy_of(random_model("llama"))
    policy.base = replace(policy.base, unused=("vision.weight",))
    assert (
        "1 weights that this language model has no place for, such as vision.weight"
        in (said(policy)["weights"])
    )


def test_what_was_found_is_in_the_run_folder(tmp_path: Path) -> None:
    findings = check_model(policy_of(random_model("llama")))
    save_findings(tmp_path, findings)
    kept = json.loads((tmp_path / "model_check.json").read_text())
    assert [row["name"] for row in kept] == [finding.name for finding in findings]
    assert set(kept[0]) == {"name", "sentence", "fatal"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 0}, "model.hidden_size=0 must be a multiple of 8 from 8 to 4096"),
        ({"hidden_size": 7}, "model.hidden_size=7 must be a multiple of 8"),
        ({"num_layers": 0}, "model.num_layers=0 must be from 1 to 128"),
        ({"init_seed": -1}, "model.init_seed=-1 must be from 0 to 4294967295"),
    ],
)
def test_size_of_the_tiny_model_is_bounded(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_config(name="tiny", **changes)
