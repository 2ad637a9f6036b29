"""Schemas of the language models and of the adapter: dataclasses with limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from homeostat.config.checks import require, require_date, require_fraction, require_positive

TEMPLATE_DATE = "2026-01-01"
# What homeostat itself hands to a template.
RENDERING = ("conversation", "messages", "chat_template", "tokenize", "add_generation_prompt")


@dataclass
class ModelConfig:
    """A causal language model with a chat template.

    ``template_options`` are handed to the template wherever it is rendered. ``template_date`` is
    what a template that asks for the date is told: a fixed one, so that the same config gives the
    same run on another day.
    """

    _target_: str = MISSING
    name: str = MISSING
    template_options: dict[str, Any] = field(default_factory=dict)
    template_date: str = TEMPLATE_DATE

    def __post_init__(self) -> None:
        for name in RENDERING:
            require(
                name not in self.template_options,
                f"model.template_options.{name} is set by homeostat itself; leave it out.",
            )
        require_date("model.template_date", self.template_date)


@dataclass
class EmbeddedModelConfig(ModelConfig):
    """The default model, carried by a package of the Python package index."""

    _target_: str = "homeostat.models.embedded.load_embedded"
    package: str = MISSING
    wheel_sha256: str = MISSING
    gguf: str = MISSING
    gguf_sha256: str = MISSING


@dataclass
class PretrainedModelConfig(ModelConfig):
    """A hub id, a local folder or a GGUF file.

    ``quantization: 4bit`` keeps the base's linear layers in 4-bit NormalFloat, which needs CUDA and
    the extra ``homeostat[quant]``; the adapter stays float32.
    """

    _target_: str = "homeostat.models.load.load_pretrained"
    path: str = MISSING
    revision: str | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.quantization in (None, "4bit"),
            f"model.quantization={self.quantization} is unknown; choose 4bit, or null for none.",
        )


@dataclass
class TinyModelConfig(ModelConfig):
    """A random model built in code, for tests; it says nothing sensible."""

    _target_: str = "homeostat.models.tiny.load_tiny"
    hidden_size: int = 32
    num_layers: int = 4
    init_seed: int = 0


@dataclass
class LoraConfig:
    """Low-rank adapter on all linear layers of a band of decoder blocks.

    ``layers`` is the band as fractions of the depth. Below the band nothing is trained, so no
    gradient flows there, which saves time and memory.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: list[float] = field(default_factory=lambda: [0.0, 1.0])

    def __post_init__(self) -> None:
        require_positive("lora", rank=self.rank, alpha=self.alpha)
        require_fraction("lora", dropout=self.dropout)
        low, high = (*self.layers, 0.0, 0.0)[:2]
        require(
            len(self.layers) == 2 and 0 <= low < high <= 1,
            f"lora.layers={list(self.layers)} must be two fractions of the depth, low then high, "
            "such as [0.5,1.0].",
        )
