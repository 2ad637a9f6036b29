"""Base models with their tokenizers: from the hub, a folder or a GGUF file.

Code that comes with a model is never run. What a model lacks is found before its weights are read
where its config says it, else right after.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
)

from homeostat.config.model import ModelConfig, PretrainedModelConfig
from homeostat.errors import HomeostatError, out_of_memory
from homeostat.models.attention import use_fast_attention
from homeostat.models.fingerprint import fingerprint
from homeostat.models.hub import require_on_hub
from homeostat.models.quiet import quiet
from homeostat.models.suitable import (
    adapter_refusal,
    forget_rowless_padding,
    require_architecture,
    require_readable,
    require_whole,
    sketch,
    use_own_attention,
)
from homeostat.models.template import ChatTemplate, chat_template

# What the readers of other libraries raise over a file that is damaged or not theirs.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class BaseModel:
    """Frozen base weights and the tokenizer that belongs to them.

    Attributes:
        model: The causal language model, in evaluation mode, on the run's device.
        tokenizer: Has a chat template.
        name: The name of the preset, for people.
        fingerprint: Changes when architecture or weights change; keys what is cached per model.
        template: How a conversation becomes text.
        unused: Names of weights that the checkpoint holds and this model has no place for.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    template: ChatTemplate
    unused: tuple[str, ...] = ()

    @cached_property
    def vocabulary(self) -> str:
        """Hex digest of the tokens and their ids."""
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(words.encode()).hexdigest()


def load_pretrained(
    config: PretrainedModelConfig, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """A model from a hub id, a local folder or a GGUF file.

    Raises:
        HomeostatError: Nothing is there, or it is damaged or incomplete; the hub cannot be reached
            and nothing is cached; the model is gated, is an adapter, needs code of its own, is of
            an architecture that cannot be trained here, or has no chat template.
    """
    path = Path(config.path).expanduser()
    quantization = four_bit(device, dtype) if config.quantization else None
    if path.suffix.lower() == ".gguf":
        if quantization is not None:
            raise HomeostatError(
                f"model.quantization={config.quantization} does not go with a GGUF file, which is "
                "de-quantised; give a folder or hub id, or leave it null."
            )
        if not path.is_file():
            raise HomeostatError(f"model.path={config.path} is not a file; give the GGUF's path.")
        model, tokenizer, unused = read_gguf(path, dtype)
    elif path.is_dir():
        require_readable(path)
        model, tokenizer, unused = read_folder(str(path), dtype, quantization=quantization)
    elif path.is_file():
        raise HomeostatError(
            f"model.path={config.path} is a file whose name does not end in .gguf; give a model "
            "folder, GGUF file or hub id."
        )
    elif path.is_absolute() or config.path.startswith((".", "~")):
        raise HomeostatError(
            f"model.path={config.path} does not exist; give a model folder, GGUF file or hub id."
        )
    else:
        reachable = require_on_hub(config)
        model, tokenizer, unused = read_folder(
            config.path, dtype, config.revision, quantization, cached_only=not reachable
        )
    return finish(model, tokenizer, config, device, unused)


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
    cached_only: bool = False,
) -> tuple[Any, Any, tuple[str, ...]]:
    """Model and tokenizer of a folder or hub id, and the weights that found no place.

    Args:
        path: Folder or hub id.
        dtype: Of the weights.
        revision: Of the hub id; None = the newest.
        quantization: Of the linear layers; None = none.
        cached_only: Ask no hub; what it has is in the hub's cache.

    Raises:
        HomeostatError: One of them cannot be read, is incomplete, or cannot be used here.
    """
    where = {"revision": revision, "local_files_only": cached_only, "trust_remote_code": False}
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **where}
    if quantization is not None:
        # Quantised weights are made on their device and cannot be moved there afterwards.
        options |= {"quantization_config": quantization, "device_map": {"": "cuda"}}
    with _reading(path):
        config = AutoConfig.from_pretrained(path, **where)
        forget_rowless_padding(config)
        use_own_attention(config)
        require_architecture(sketch(config, path), path)
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        model, unused = _read_weights(
            path, pretrained_model_name_or_path=path, config=config, **options
        )
    return model, tokenizer, unused


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any, tuple[str, ...]]:
    """Model and tokenizer of a GGUF file, de-quantised to plain weights, and unused weights.

    Raises:
        HomeostatError: It is no GGUF file, or damaged, or cannot be used here.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise HomeostatError(f"{path} is not a GGUF file, or damaged at its very beginning.")
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "trust_remote_code": False,
    }
    with _reading(str(path), "; if the file was cut short, fetch it again"):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, unused = _read_weights(
            str(path), **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
        )
    require_architecture(model, str(path))
    # A model that remembers its quantiser refuses save_pretrained, though its weights are dense.
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    return model, tokenizer, unused


@contextmanager
def _reading(path: str, advice: str = "") -> Iterator[None]:
    """Within this context other libraries are quiet, and their errors become one sentence."""
    try:
        with quiet():
            yield
    except UNREADABLE as error:
        if out_of_memory(error) is not None:
            raise
        said = first_sentence(error)
        if not isinstance(error, OSError | ValueError):
            said = f"it is damaged or incomplete ({said})"
        raise HomeostatError(f"no model could be read from {path}: {said}{advice}.") from error


def first_sentence(error: BaseException) -> str:
    """What an error says up to its first full stop, on one line, without that stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[.!?])\s", text)[0].rstrip(".")


def _read_weights(path: str, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """The model with all its weights, and the names of those that it has no place for.

    Raises:
        HomeostatError: Weights are missing or of another shape, or a head is left over.
    """
    model, loading_info = AutoModelForCausalLM.from_pretrained(
        **options, output_loading_info=True, ignore_mismatched_sizes=True
    )
    require_whole(path, loading_info)
    return model, tuple(sorted(loading_info["unexpected_keys"]))


def finish(
    model: Any,
    tokenizer: Any,
    config: ModelConfig,
    device: torch.device,
    unused: tuple[str, ...] = (),
) -> BaseModel:
    """The base model in evaluation mode with frozen weights, on its device.

    Raises:
        HomeostatError: The tokenizer has no chat template, or one that loses what is said; or an
            adapter came with the model.
    """
    template = chat_template(tokenizer, config.name, config.template_options, config.template_date)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise HomeostatError(adapter_refusal(config.name))
    model.requires_grad_(False)
    if not getattr(model, "is_quantized", False):
        model = model.to(device)
    use_fast_attention(model)
    return BaseModel(model.eval(), tokenizer, config.name, fingerprint(model), template, unused)
