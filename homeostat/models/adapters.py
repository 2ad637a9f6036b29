"""The policy: frozen base weights plus a LoRA; the reference is the same object, adapter off.

A critic may have a second LoRA on the same base. A policy that learns in rounds has one per round:
all are on, and only the newest learns. `baked` merges them into the weights for a while.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from homeostat.config.model import LoraConfig
from homeostat.errors import HomeostatError
from homeostat.files import damaged, naming_full_disk
from homeostat.models.chat import encode
from homeostat.models.hooks import BLOCKS, Steering, add_residual, decoder_layers
from homeostat.models.load import BaseModel
from homeostat.types import Conversation, TokenBlock, TokenStream

POLICY, CRITIC = "default", "critic"  # the adapters, as peft names them
STACK = "stack"  # all rounds as one, while they are exported


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
        self.rounds = [POLICY]  # adapters that are on, oldest first
        self.adapter_on = True
        self.is_recomputing = False
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
                predicts none: where a steering acts. None: it acts nowhere in this pass.
        """
        if self._steering is not None:
            self._steering.index_BT = predicts
        output = self.trunk(
            input_ids=block.ids,
            attention_mask=block.mask,
            position_ids=block.positions,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
        )
        states: Float[Tensor, "B T D"] = output.last_hidden_state
        return states

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
    def steered(self, steering: Steering) -> Iterator[None]:
        """Within this context ``steering`` acts wherever replies are decoded or read.

        Not within `reference` and `previous`.
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

    @contextmanager
    def _unsteered(self) -> Iterator[None]:
        steering, self._steering = self._steering, None
        if steering is not None:
            steering.index_BT = None
        try:
            yield
        finally:
            self._steering = steering

    def encode(self, conversation: Conversation, begun: TokenStream | None = None) -> TokenStream:
        """The token stream of a conversation under this model's template; see `encode`."""
        return encode(conversation, self.base.template, self.eos_ids, begun)

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

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The parameters of the policy that training moves; a critic's are not among them."""
        return self._parameters_of(self.rounds[-1])

    def add_round(self, seed: int) -> None:
        """Freeze the adapters so far and put a fresh one of the same shape on top of them."""
        name = f"round_{len(self.rounds) + 1}"
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self.model.add_adapter(name, self.model.peft_config[POLICY])
        self.rounds.append(name)
        self._activate(self.rounds)

    @contextmanager
    def previous(self) -> Iterator[None]:
        """Within this context the policy is what it was before its newest round."""
        if len(self.rounds) == 1:
            with self.reference():
                yield
            return
        self._activate(self.rounds[:-1])
        try:
            with self._unsteered():
                yield
        finally:
            self._activate(self.rounds)

    def _activate(self, names: Sequence[str]) -> None:
        """Let these adapters be on; only the newest round's learns, on or off."""
        # peft's own wrapper takes one name; the tuner below it takes several, whose outputs add up.
        self.model.base_model.set_adapter(list(names), inference_mode=True)
        for parameter in self.adapter_parameters():
            parameter.requires_grad_(True)

    @contextmanager
    def baked(self, beside: Path | None = None) -> Iterator[None]:
        """Within this context the adapters are merged into the weights; then the base is back.

        To the bit: subtracting what was added would leave rounding behind, so the weights as they
        were wait in a temporary file, not in memory.

        Args:
            beside: A folder for that file, as large as the weights; None = the system's own for
                temporary files, which is often small.

        Raises:
            HomeostatError: The disk is full.
        """
        merged = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer")
        }
        with TemporaryDirectory(dir=beside) as folder:
            kept = Path(folder) / "base.safetensors"
            with naming_full_disk(Path(folder).parent):
                save_file({name: m.base_layer.weight.data for name, m in merged.items()}, kept)
            self.model.base_model.merge_adapter(self.rounds)
            try:
                yield
            finally:
                self.model.base_model.unmerge_adapter()
                with safe_open(kept, framework="pt") as stored:
                    for name, module in merged.items():
                        module.base_layer.weight.data.copy_(stored.get_tensor(name))

    @torch.no_grad()
    def verify_bake(self, ids: Int[Tensor, "B T"], beside: Path | None = None) -> float:
        """Largest difference of log-probability between stack and merged weights on some tokens.

        Args:
            ids: Rows without padding.
            beside: A folder that holds another copy of the weights meanwhile, as for `baked`.

        Returns:
            Nats, over all positions and the whole vocabulary.
        """
        stacked = self._log_probabilities(ids)
        with self.baked(beside):
            merged = self._log_probabilities(ids)
        return float((stacked - merged).abs().max())

    def _log_probabilities(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return self.unembed(self.hidden(TokenBlock(ids))).log_softmax(dim=-1)

    def export_merged(self, folder: Path) -> None:
        """Write one plain model, adapters merged in, with its tokenizer."""
        with self.baked(beside=folder.parent):
            weights = {
                name.replace(".base_layer", ""): value
                for name, value in self.base.model.state_dict().items()
                if ".lora_" not in name
            }
            self.base.model.save_pretrained(str(folder), state_dict=weights)
        self.tokenizer.save_pretrained(str(folder))

    def export_adapter(self, folder: Path) -> None:
        """Write the whole stack as one adapter, whose rank is the sum of the rounds'."""
        if len(self.rounds) == 1:
            self.save_adapter(folder)
            return
        ones = [1.0] * len(self.rounds)
        self.model.add_weighted_adapter(self.rounds, ones, STACK, combination_type="cat")
        try:
            self.model.save_pretrained(str(folder), selected_adapters=[STACK])
            for path in (folder / STACK).iterdir():  # where peft puts what is not its default
                path.rename(folder / path.name)
            (folder / STACK).rmdir()
        finally:
            self.model.delete_adapter(STACK)
            self._activate(self.rounds)

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

    def adapter_digest(self) -> str:
        """Hex SHA-256 of the weights of every round, which tells one trained policy from another.

        Half-precision weights are read as float32, which holds them exactly.
        """
        digest = hashlib.sha256()
        for name in self.rounds:
            shape = self.model.peft_config[name].to_dict()
            digest.update(repr(sorted((k, str(v)) for k, v in shape.items())).encode())
            for parameter in self._parameters_of(name):
                digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _parameters_of(self, adapter: str) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if f".{adapter}." in name]

    def save_adapter(self, folder: Path) -> None:
        """Write the policy's adapters so that plain ``PeftModel.from_pretrained`` loads them.

        The first lies in the folder itself, those of later rounds in folders of their names.
        """
        self.model.save_pretrained(str(folder), selected_adapters=self.rounds)

    def load_adapter(self, folder: Path) -> None:
        """Take over the weights that `save_adapter` wrote, in as many rounds.

        Raises:
            HomeostatError: They belong to an adapter of another shape.
        """
        for done in range(1, 1 + len(list(folder.glob("round_*")))):
            if len(self.rounds) <= done:
                self.add_round(seed=0)
        for name in self.rounds:
            own_folder = folder if name == POLICY else folder / name
            saved = _read_weights(own_folder / "adapter_model.safetensors")
            own = get_peft_model_state_dict(self.model, adapter_name=name)
            if {n: w.shape for n, w in saved.items()} != {n: w.shape for n, w in own.items()}:
                raise HomeostatError(
                    f"the adapter in {own_folder} does not fit this model; the model and lora.* "
                    "must be those that it was trained with."
                )
            set_peft_model_state_dict(self.model, saved, adapter_name=name)


def cache_argument(trunk: nn.Module) -> str:
    """What a model of this version of transformers calls the cache that it is given."""
    parameters = inspect.signature(trunk.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        HomeostatError: It is cut off or damaged.
    """
    mend = (
        "delete the checkpoint that it lies in, and the run goes on from the one before it; the "
        "file in adapters/ is that of the last checkpoint"
    )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error, mend) from error


def _peft_config(model: Any, lora: LoraConfig, blocks: int) -> PeftLoraConfig:
    """LoRA on every linear layer of the decoder blocks within the band, and on nothing else."""
    low, high = lora.layers
    first = min(round(low * blocks), blocks - 1)
    last = max(round(high * blocks), first + 1)
    leaves = sorted(
        {
            name.split(".")[-1]
            for name, module in decoder_layers(model).named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
    )
    turned = any(isinstance(module, Conv1D) for module in decoder_layers(model).modules())
    numbers = "|".join(str(i) for i in range(first, last))
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        fan_in_fan_out=turned,
        target_modules=rf"(?!.*vision).*\b({'|'.join(BLOCKS)})\.({numbers})\..*\b({'|'.join(leaves)})",
    )
