"""Base models with their tokenizers: from the hub, a folder or a GGUF file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that the hub's client uses, whichever that is
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig
from transformers.utils import logging as transformers_logging

from homeostat.config.model import ModelConfig, PretrainedModelConfig
from homeostat.errors import HomeostatError
from homeostat.models.template import ChatTemplate, chat_template


@dataclass(frozen=True)
class BaseModel:
    """Frozen base weights and the tokenizer that belongs to them.

    Attributes:
        model: The causal language model, in evaluation mode, on the run's device.
        tokenizer: Has a chat template.
        name: The name of the preset, for people.
        fingerprint: Changes when architecture or weights change; keys what is cached per model.
        template: How a conversation becomes text.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    template: ChatTemplate


def load_pretrained(
    config: PretrainedModelConfig, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """A model from a hub id, a local folder or a GGUF file.

    Raises:
        HomeostatError: Nothing is there, the hub cannot be reached and nothing is cached, the model
            is gated, or it has no chat template.
    """
    path = Path(config.path).expanduser()
    quantization = four_bit(device, dtype) if config.quantization else None
    if path.suffix == ".gguf":
        if quantization is not None:
            raise HomeostatError(
                f"model.quantization={config.quantization} does not go with a GGUF file, which is "
                "de-quantised; give a folder or hub id, or leave it null."
            )
        if not path.is_file():
            raise HomeostatError(f"model.path={config.path} is not a file; give the GGUF's path.")
        try:
            model, tokenizer = read_gguf(path, dtype)
        except (OSError, ValueError, KeyError) as error:
            raise HomeostatError(f"no model could be read from {path}: {error}") from error
    elif path.is_dir():
        model, tokenizer = read_folder(str(path), dtype, quantization=quantization)
    elif path.is_absolute() or config.path.startswith((".", "~")):
        raise HomeostatError(
            f"model.path={config.path} does not exist; give a model folder, GGUF file or hub id."
        )
    else:
        _require_on_hub(config)
        model, tokenizer = read_folder(config.path, dtype, config.revision, quantization)
    return finish(model, tokenizer, config, device)


def four_bit(device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with quantised scales, computing in ``dtype``.

    Raises:
        HomeostatError: There is no CUDA device, or bitsandbytes is not installed.

    Source: Dettmers et al. 2023, arXiv 2305.14314.
    """
    if device.type != "cuda":
        raise HomeostatError(
            f"model.quantization=4bit needs a CUDA device and this run is on {device.type}; leave "
            "it null here."
        )
    if find_spec("bitsandbytes") is None:
        raise HomeostatError(
            "model.quantization=4bit needs bitsandbytes: pip install 'homeostat[quant]'."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def read_folder(
    path: str,
    dtype: torch.dtype,
    revision: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id, without progress bars."""
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if quantization is not None:
        # Quantised weights are made on their device and cannot be moved there afterwards.
        options |= {"quantization_config": quantization, "device_map": {"": "cuda"}}
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise HomeostatError(f"no model could be read from {path}: {first}") from error
    return model, tokenizer


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, de-quantised to plain weights."""
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    # A model that remembers its quantiser refuses save_pretrained, though its weights are dense.
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    return model, AutoTokenizer.from_pretrained(**where)


def finish(model: Any, tokenizer: Any, config: ModelConfig, device: torch.device) -> BaseModel:
    """The base model in evaluation mode with frozen weights, on its device.

    Raises:
        HomeostatError: The tokenizer has no chat template, or one that loses what is said.
    """
    template = chat_template(tokenizer, config.name, config.template_options, config.template_date)
    model.requires_grad_(False)
    if not getattr(model, "is_quantized", False):
        model = model.to(device)
    return BaseModel(model.eval(), tokenizer, config.name, fingerprint(model), template)


def fingerprint(model: Any) -> str:
    """Hex digest of the architecture and of 64 values of every weight tensor."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(name.encode() + sample.tobytes())
    return digest.hexdigest()


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` stands for; ``auto`` prefers CUDA, then MPS.

    Raises:
        HomeostatError: The device is not on this machine.
    """
    found = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if found[d]))
    if not found[name]:
        here = ", ".join(d for d, there in found.items() if there)
        raise HomeostatError(f"device={name} is not on this machine; here are: {here} (or auto).")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that ``name`` stands for; ``auto``: bfloat16 on CUDA that has it, else float32."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if on_gpu else torch.float32


def _require_on_hub(config: PretrainedModelConfig) -> None:
    """Fail in seconds, with one sentence, if a hub model is neither cached nor to be fetched."""
    instead = (
        "Connect, log in with `hf auth login` if the model is gated, or use model=smollm2_135m, "
        "or model=local model.path=<folder or GGUF file>."
    )
    try:
        hf_hub_download(config.path, "config.json", revision=config.revision, etag_timeout=5)
    except GatedRepoError as error:
        raise HomeostatError(
            f"model {config.name} ({config.path}) is gated: accept its licence on the hub first. "
            f"{instead}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HomeostatError(_unreachable(config, instead)) from error
    except (HfHubHTTPError, ValueError) as error:
        raise HomeostatError(
            f"the hub has no model {config.path} for you ({type(error).__name__}). {instead}"
        ) from error
    except HTTPError as error:
        raise HomeostatError(_unreachable(config, instead)) from error


def _unreachable(config: PretrainedModelConfig, instead: str) -> str:
    return (
        f"model {config.name} ({config.path}) is not cached here and the hub cannot be reached. "
        f"{instead}"
    )
