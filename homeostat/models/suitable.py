"""Whether a checkpoint is a model that can be used here; said in a sentence, most of it beforehand.

Code that comes with a model is never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from homeostat.errors import HomeostatError
from homeostat.models.hooks import decoder_layers

KNOWN_TO_RUN = "llama, mistral, qwen2, qwen3, gemma, gemma3, granite, cohere, gpt2, gpt_neox, opt"
OWN_ATTENTION = ("eager", "sdpa")
TOKENIZER_FILES = ("tokenizer.*", "vocab*", "spiece*", "sentencepiece*", "tekken*", "*.tiktoken")
# Names of heads that make another model of the same trunk: a classifier, a reward, a value.
HEADS = re.compile(r"(^|[._])(lm_head|embed_out|score|classifier|v_head|value_head|qa_outputs)\b")


def require_readable(folder: Path) -> None:
    """Refuse a folder that is an adapter, or lacks what a model needs, before anything is read."""
    if (folder / "adapter_config.json").is_file():
        raise HomeostatError(adapter_refusal(f"model.path={folder}"))
    if not (folder / "config.json").is_file():
        raise HomeostatError(
            f"no model could be read from {folder}: it has no config.json; give a folder that "
            "save_pretrained has written, a GGUF file or a hub id."
        )
    require_known_model(folder / "config.json", str(folder))
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise HomeostatError(
            f"no model could be read from {folder}: its weights are a pickle ({pickles[0].name}), "
            "which may hold code and is never loaded; save them again as safetensors."
        )
    if not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        raise HomeostatError(
            f"no model could be read from {folder}: it has no tokenizer (no tokenizer.json, say); "
            "save the model's own beside its weights."
        )


def require_known_model(config_file: Path, path: str) -> None:
    """Refuse a config that is damaged, or whose model exists only as code that lies beside it."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        code, kind = config.get("auto_map"), config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise HomeostatError(
            f"no model could be read from {path}: its config.json is damaged ({error}); fetch or "
            "save it again."
        ) from error
    if code and kind not in CONFIG_MAPPING:
        raise HomeostatError(
            f"{path} needs code of its own (auto_map in its config.json), which is never run; "
            f"choose a model that transformers knows, such as {KNOWN_TO_RUN}."
        )


def forget_rowless_padding(config: Any) -> None:
    """Unset a padding id without a row in the embedding; torch builds no model with one."""
    for part in (config, config.get_text_config()):
        rows, pad = getattr(part, "vocab_size", None), getattr(part, "pad_token_id", None)
        if rows is not None and pad is not None and not 0 <= pad < rows:
            part.pad_token_id = None


def use_own_attention(config: Any) -> None:
    """Unset an attention that is not transformers' own: a config may name a kernel on the hub."""
    for part in (config, config.get_text_config()):
        if getattr(part, "_attn_implementation", None) not in (None, *OWN_ATTENTION):
            part._attn_implementation = None


def sketch(config: Any, path: str) -> Any:
    """The model of a config without any weights.

    Raises:
        HomeostatError: It is no language model that transformers knows.
    """
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise HomeostatError(
            f"{path} holds a {config.model_type} model, which is no causal language model that "
            f"transformers knows; among those that can be used are {KNOWN_TO_RUN}."
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def require_architecture(model: Any, path: str) -> None:
    """Refuse an architecture that cannot be steered, batched or bounded as this package does it.

    Args:
        model: Its weights are not looked at.
        path: Where it lies.

    Raises:
        HomeostatError: Says what is in the way.
    """
    config = model.config.get_text_config()
    attention = (DynamicLayer, DynamicSlidingWindowLayer)
    layers = DynamicCache(config=config).layers
    other = sorted({type(layer).__name__ for layer in layers if type(layer) not in attention})
    try:
        decoder_layers(model)
        why = None
    except ValueError as error:
        why = str(error).rstrip(".")
    trunk = getattr(model, model.base_model_prefix, model)
    if model._is_stateful or other:
        why = "it carries a state from token to token, which the padding of a batch would enter"
    elif getattr(config, "max_position_embeddings", None) is None:
        why = "its config has no max_position_embeddings, so its context is unknown"
    elif "position_ids" not in signature(trunk.forward).parameters:
        why = "its forward pass takes no position_ids, without which padded rows are misread"
    if why is not None:
        raise HomeostatError(
            f"{path} holds a {config.model_type} model, which cannot be used here: {why}; among "
            f"those that can are {KNOWN_TO_RUN}."
        )


def require_whole(path: str, loading_info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not those of the model.

    Args:
        path: Where it lies.
        loading_info: What transformers says about the names in it.

    Raises:
        HomeostatError: Weights are missing or of another shape, or a head is left over.
    """
    lacking = sorted(loading_info["missing_keys"])
    other = sorted(str(key[0]) for key in loading_info["mismatched_keys"])
    heads = sorted(name for name in loading_info["unexpected_keys"] if HEADS.search(name))
    named = (
        (lacking, "has no weights for {}, which would be random"),
        (other, "has weights of another shape than its config says for {}"),
        (heads, "has a head that no language model uses, {}"),
    )
    for names, what in named:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise HomeostatError(
                f"the checkpoint in {path} {what.format(names[0] + more)}; save it again as a "
                "whole language model, under the names that save_pretrained gives."
            )


def adapter_refusal(path: str) -> str:
    """What to do with an adapter that was given for a model."""
    return (
        f"{path} holds a PEFT adapter; merge it into its base first (PEFT's merge_and_unload, then "
        "save_pretrained; for a run of homeostat export=<run>) and give that folder, or give its "
        "base."
    )
