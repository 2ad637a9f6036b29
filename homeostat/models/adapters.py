"""The policy: frozen base weights plus a LoRA; the reference is the same object, adapter off.

A critic may have a second LoRA on the same base.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from homeostat.config import LoraConfig
from homeostat.errors import HomeostatError
from homeostat.models.chat import TokenStream, encode
from homeostat.models.hooks import decoder_layers
from homeostat.models.load import BaseModel
from homeostat.types import Conversation

POLICY, CRITIC = "default", "critic"  # the adapters, as peft names them


class Policy:
    """Base weights with one trainable adapter. There is never a second copy of the base."""

    def __init__(self, base: BaseModel, lora: LoraConfig, seed: int) -> None:
        self.base = base
        self.tokenizer = base.tokenizer
        blocks = len(decoder_layers(base.model))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for an attribute by its old name; nothing a user can mend.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self.model = get_peft_model(base.model, _peft_config(base.model, lora, blocks))
        self.model.eval()
        self.adapter_on = True
        self.is_recomputing = False

    @property
    def trunk(self) -> Any:
        """The model without its unembedding."""
        causal = self.model.get_base_model()
        return getattr(causal, causal.base_model_prefix)

    def unembed(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Float32 logits of final hidden states."""
        causal = self.model.get_base_model()
        logits: Float[Tensor, "*R V"] = causal.get_output_embeddings()(hidden).float()
        cap = getattr(causal.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context the policy is its reference: adapter off, same weights."""
        before, self.adapter_on = self.adapter_on, False
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.adapter_on = before

    def encode(self, conversation: Conversation) -> TokenStream:
        """The token stream of a conversation under this model's template."""
        return encode(conversation, self.tokenizer, self.eos_ids)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.base.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.base.model.dtype
        return dtype

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a reply."""
        ids = self.base.model.generation_config.eos_token_id
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        return tuple(dict.fromkeys([*ids, self.tokenizer.eos_token_id]))

    @property
    def pad_id(self) -> int:
        """Id that fills a padded batch; always masked."""
        pad: int | None = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None else pad

    @property
    def text_config(self) -> Any:
        """The base model's own description of its language part."""
        return self.base.model.config.get_text_config()

    @property
    def max_context(self) -> int:
        """Tokens that fit into one conversation."""
        return int(self.text_config.max_position_embeddings)

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        return int(self.text_config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.text_config.hidden_size)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The parameters of the policy that training moves; a critic's are not among them."""
        return self._parameters_of(POLICY)

    def add_critic(self, seed: int) -> list[nn.Parameter]:
        """A second adapter of the same shape, which is on only within `critic`; its parameters."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self.model.add_adapter(CRITIC, self.model.peft_config[POLICY])
        return self._parameters_of(CRITIC)

    @contextmanager
    def critic(self) -> Iterator[None]:
        """Within this context the critic's adapter is on instead of the policy's."""
        self.model.set_adapter(CRITIC)
        try:
            yield
        finally:
            self.model.set_adapter(POLICY)
            # peft freezes an adapter that is switched off; a backward pass may still be to come.
            for parameter in self._parameters_of(CRITIC):
                parameter.requires_grad_(True)

    @contextmanager
    def recomputing(self, wanted: bool) -> Iterator[None]:
        """Within this context decoder blocks keep only their inputs, and compute the rest again.

        Nothing happens unless ``wanted``. Results stay the same: a block counts as training so that
        transformers checkpoints it, while the modules in it go on evaluating, without dropout.
        """
        if not wanted:
            yield
            return
        layers = decoder_layers(self.model)
        self.base.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.is_recomputing = True
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            self.is_recomputing = False
            for layer in layers:
                layer.training = False
            self.base.model.gradient_checkpointing_disable()

    def _parameters_of(self, adapter: str) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if f".{adapter}." in name]

    def save_adapter(self, folder: Path) -> None:
        """Write the policy's adapter so that plain ``PeftModel.from_pretrained`` loads it."""
        self.model.save_pretrained(str(folder), selected_adapters=[POLICY])

    def load_adapter(self, folder: Path) -> None:
        """Take over the weights that `save_adapter` wrote.

        Raises:
            HomeostatError: They belong to an adapter of another shape.
        """
        saved = load_file(folder / "adapter_model.safetensors")
        own = get_peft_model_state_dict(self.model)
        if {n: w.shape for n, w in saved.items()} != {n: w.shape for n, w in own.items()}:
            raise HomeostatError(
                f"the adapter in {folder} does not fit this model; the model and lora.* must be "
                "those that it was trained with."
            )
        set_peft_model_state_dict(self.model, saved)


def _peft_config(model: Any, lora: LoraConfig, blocks: int) -> PeftLoraConfig:
    """LoRA on every linear layer of the decoder blocks within the band, and on nothing else."""
    low, high = lora.layers
    first = min(round(low * blocks), blocks - 1)
    last = max(round(high * blocks), first + 1)
    leaves = sorted(
        {
            name.split(".")[-1]
            for name, module in decoder_layers(model).named_modules()
            if isinstance(module, nn.Linear)
        }
    )
    numbers = "|".join(str(i) for i in range(first, last))
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"(?!.*vision).*\blayers\.({numbers})\..*\b({'|'.join(leaves)})",
    )
