"""The policy: frozen base weights plus a LoRA; the reference is the same object, adapter off.

A critic may have a second LoRA on the same base. A policy that learns in rounds has one per round:
all are on, and only the newest learns.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import DynamicCache

from homeostat.config.model import LoraConfig
from homeostat.models.chat import encode
from homeostat.models.hooks import Steering, add_residual, decoder_layers
from homeostat.models.load import BaseModel
from homeostat.models.lora import peft_config
from homeostat.models.lower import LowerBlocks, frozen_depth
from homeostat.types import Conversation, TokenBlock, TokenStream

POLICY, CRITIC = "default", "critic"  # the adapters, as peft names them


class Policy:
    """Base weights with one trainable adapter. There is never a second copy of the base."""

    def __init__(self, base: BaseModel, lora: LoraConfig, seed: int) -> None:
        self.base = base
        self.tokenizer = base.tokenizer
        with _drawn_from(seed):
            self.model = get_peft_model(base.model, peft_config(base.model, lora))
        self.model.eval()
        self.rounds = [POLICY]  # adapters that are on, oldest first
        self.adapter_on = True
        self.is_recomputing = False
        self.lower: LowerBlocks | None = None  # within `keeping_lower`
        self._steering: Steering | None = None
        self._cache_argument = cache_argument(self.trunk)

    @property
    def trunk(self) -> Any:
        """The model without its unembedding."""
        causal = self.model.get_base_model()
        return getattr(causal, causal.base_model_prefix)

    def unembed(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Float32 logits of final hidden states."""
        causal = self.model.get_base_model()
        logits: Float[Tensor, "*R V"] = causal.get_output_embeddings()(hidden).float()
        config = causal.config.get_text_config()
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return cap * torch.tanh(logits / cap) if cap else logits

    def hidden(
        self,
        block: TokenBlock,
        cache: DynamicCache | None = None,
        predicts: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Final hidden states of some tokens under the policy as it is; the only forward pass.

        Args:
            block: The tokens after those in the cache.
            cache: Keys and values of what came before; takes in the block unless it is frozen.
            predicts: Which token of its reply each position predicts, from 0, and -1 where it
                predicts none: where a steering acts. None: nowhere in this pass, unless the
                steering acts everywhere.
        """
        if self._steering is not None:
            self._steering.enter(block.ids, predicts)
        output = self.trunk(
            input_ids=block.ids,
            attention_mask=block.mask,
            position_ids=block.positions,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
        )
        states: Float[Tensor, "B T D"] = output.last_hidden_state
        return states

    def encode(self, conversation: Conversation, begun: TokenStream | None = None) -> TokenStream:
        """The token stream of a conversation under this model's template; see `encode`."""
        return encode(conversation, self.base.template, self.eos_ids, begun)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context the policy is its reference: adapters and steering off."""
        before, self.adapter_on = self.adapter_on, False
        try:
            with self._unsteered(), self.model.disable_adapter():
                yield
        finally:
            self.adapter_on = before

    @contextmanager
    def as_of(self, rounds: int) -> Iterator[None]:
        """Within this context the policy is what it was after so many rounds; 0 is the base."""
        if not rounds:
            with self.reference():
                yield
            return
        self.activate(self.rounds[:rounds])
        try:
            with self._unsteered():
                yield
        finally:
            self.activate(self.rounds)

    def activate(self, names: Sequence[str]) -> None:
        """Let these adapters be on; only the newest round's learns, on or off."""
        # peft's own wrapper takes one name; the tuner below it takes several, whose outputs add up.
        self.model.base_model.set_adapter(list(names), inference_mode=True)
        for parameter in self.adapter_parameters():
            parameter.requires_grad_(True)

    @contextmanager
    def steered(self, steering: Steering) -> Iterator[None]:
        """Within this context ``steering`` acts wherever replies are decoded or read.

        Not within `reference` and `as_of`.
        """
        self._steering = steering
        try:
            with add_residual(self.trunk, steering):
                yield
        finally:
            self._steering = None

    @property
    def is_steered(self) -> bool:
        """Whether a steering acts on the policy as it is."""
        return self._steering is not None

    @property
    def treats_rows_alike(self) -> bool:
        """Whether rows of a batch may change places: not where each has a dose of its own."""
        return self._steering is None or len(self._steering.dose_B) == 1

    @property
    def reads_prompts_alike(self) -> bool:
        """Whether what rows begin with may be read once: not where it is steered by row."""
        return self.treats_rows_alike or not (self._steering and self._steering.everywhere)

    @contextmanager
    def _unsteered(self) -> Iterator[None]:
        steering, self._steering = self._steering, None
        if steering is not None:
            steering.index_BT = None
        try:
            yield
        finally:
            self._steering = steering

    @contextmanager
    def keeping_lower(self) -> Iterator[None]:
        """Within this context frozen blocks below the lowest adapter read a conversation once.

        Nothing happens where there are none, or where blocks hand on more than hidden states.
        """
        adapted = [p for name, p in self.model.named_parameters() if ".lora_" in name]
        depth = frozen_depth(self.model, adapted)
        shares_keys = bool(getattr(self.text_config, "num_kv_shared_layers", 0))
        if depth and not shares_keys:
            self.lower = LowerBlocks(depth)
        try:
            yield
        finally:
            self.lower = None

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
        enable, disable = checkpointing_of(self.base.model)
        enable({"use_reentrant": False})
        self.is_recomputing = True
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            self.is_recomputing = False
            for layer in layers:
                layer.training = False
            disable()

    def add_round(self, seed: int) -> None:
        """Freeze the adapters so far and put a fresh one of the same shape on top of them."""
        name = f"round_{len(self.rounds) + 1}"
        with _drawn_from(seed):
            self.model.add_adapter(name, self.model.peft_config[POLICY])
        self.rounds.append(name)
        self.activate(self.rounds)

    def redraw_round(self, seed: int) -> None:
        """Drop what the newest round has learnt: its adapter is fresh again."""
        name = self.rounds[-1]
        with _drawn_from(seed), torch.no_grad():
            for module in self.model.modules():
                if isinstance(module, LoraLayer) and name in module.lora_A:
                    module.reset_lora_parameters(name, True)

    def add_critic(self, seed: int) -> list[nn.Parameter]:
        """A second adapter of the same shape, which is on only within `critic`; its parameters."""
        with _drawn_from(seed):
            self.model.add_adapter(CRITIC, self.model.peft_config[POLICY])
        return self.parameters_of(CRITIC)

    @contextmanager
    def critic(self) -> Iterator[None]:
        """Within this context the critic's adapter is on instead of the policy's."""
        self.model.set_adapter(CRITIC)
        try:
            yield
        finally:
            self.model.set_adapter(POLICY)
            # peft freezes an adapter that is switched off; a backward pass may still be to come.
            for parameter in self.parameters_of(CRITIC):
                parameter.requires_grad_(True)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The parameters of the policy that training moves; a critic's are not among them."""
        return self.parameters_of(self.rounds[-1])

    def parameters_of(self, adapter: str) -> list[nn.Parameter]:
        """The parameters of one adapter, on or off."""
        return [p for name, p in self.model.named_parameters() if f".{adapter}." in name]

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
        """Ids that end a reply: as the generation config, the tokenizer and the template say."""
        ids = self.base.model.generation_config.eos_token_id
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        ids += [self.tokenizer.eos_token_id, *self.base.template.end_ids]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    @property
    def pad_id(self) -> int:
        """Id that fills a padded batch; always masked, and always a row of the embedding."""
        pad: int | None = self.tokenizer.pad_token_id
        rows = self.base.model.get_input_embeddings().num_embeddings
        return self.eos_ids[0] if pad is None or pad >= rows else pad

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


def checkpointing_of(model: Any) -> tuple[Callable[..., None], Callable[[], None]]:
    """What switches the recomputing of blocks on and off, by its name in this transformers."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    named = f"{kind}_checkpointing"
    return getattr(model, f"{named}_enable"), getattr(model, f"{named}_disable")


def cache_argument(trunk: nn.Module) -> str:
    """What a model of this version of transformers calls the cache that it is given."""
    parameters = inspect.signature(trunk.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Within this context the first weights of an adapter follow from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for an attribute by its old name; nothing a user can mend.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        yield
