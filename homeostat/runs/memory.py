"""Whether a run fits into memory: what it will hold at once, counted before it trains.

    weights + adapters + optimiser
        + the larger of   sampling:  KV cache, next-token probabilities
                          update:    activations of one micro-batch, one chunk of logits

The first line is read off the model. Activations are what autograd keeps in two small forward
passes of this very model on this device, per token, extrapolated to the largest micro-batch;
whatever attention, dtype and adapter do to them is therefore in the figure. The rest is arithmetic.
What the process holds besides (Python, libraries, a CUDA context) is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from homeostat.bots.model import ModelBot
from homeostat.config.run import RolloutConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.hooks import decoder_layers
from homeostat.models.logprobs import CHUNK_LOGITS
from homeostat.rollout.episodes import training_seeds
from homeostat.rollout.generate import LEAVE
from homeostat.types import Bots, Conversation, Footprint, TokenBlock, Turn

FLOAT32 = 4  # bytes; adapters, moments and logits are float32 whatever the base is
# One block in the backward pass: gradients of the gated product, its two factors, and a sum.
WORK_COPIES = 4
PROBE_ROWS, PROBE_WIDTHS = 2, (32, 64)
PROMPT_TOKENS = 96  # template and message of a context; the packaged ones are shorter

ADVICE = {
    "weights": "use dtype=bfloat16, model.quantization=4bit or a smaller model",
    "adapters": "lower lora.rank, or narrow lora.layers",
    "optimiser": "lower lora.rank, or narrow lora.layers",
    "kv_cache": "lower trainer.batch_size, rollout.turns or rollout.max_new_tokens",
    "activations": "set trainer.gradient_checkpointing=true, or lower {micro}",
    "logits": "lower {micro}",
}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that each part of a run will need.

    Attributes:
        weights: The base model.
        adapters: The LoRA, and a critic's.
        optimiser: Gradients and two moments of what is trained.
        kv_cache: Keys and values of the episodes of one batch, with their sampling.
        activations: What the backward pass of the largest micro-batch needs.
        logits: One chunk of logits with its gradients.
    """

    weights: int
    adapters: int
    optimiser: int
    kv_cache: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The most that is held at once."""
        standing = self.weights + self.adapters + self.optimiser
        return standing + max(self.kv_cache, self.activations + self.logits)

    def parts(self) -> dict[str, int]:
        """Every part by name."""
        return asdict(self)

    def require(self, limit: float, micro: str | None) -> None:
        """Refuse a run that cannot fit.

        Args:
            limit: Bytes.
            micro: The key that says how much has a gradient at once, where there is one.

        Raises:
            HomeostatError: The total is above the limit; says what to lower first.
        """
        if self.total <= limit:
            return
        held = self.parts()
        held.pop("kv_cache" if self.kv_cache < self.activations + self.logits else "activations")
        largest = max(held, key=held.__getitem__)
        raise HomeostatError(
            f"this run needs about {gigabytes(self.total)} GB, {gigabytes(held[largest])} of it "
            f"for {largest.replace('_', ' ')}, and memory.limit_gb is {gigabytes(limit)}; "
            f"{ADVICE[largest].format(micro=micro or 'rollout.max_new_tokens')}."
        )


def gigabytes(size: int | float) -> str:
    """Bytes in units of 10^9, never as 0.0."""
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2g}"


def plan_memory(policy: Policy, footprint: Footprint) -> MemoryPlan:
    """The memory that training will need.

    Args:
        policy: Before training; on the meta device only shapes are read.
        footprint: Of its trainer.
    """
    base = [p for p in policy.model.parameters() if not p.requires_grad]
    adapter = sum(p.numel() for p in policy.adapter_parameters()) * FLOAT32
    vocabulary = int(policy.text_config.vocab_size)
    rows, length, tokens = footprint.rows, footprint.length, footprint.gradient_tokens
    activations = activation_bytes(policy, tokens, length, footprint.recomputes)
    return MemoryPlan(
        weights=sum(p.numel() * p.element_size() for p in base),
        adapters=footprint.adapters * adapter,
        optimiser=footprint.adapters * 3 * adapter,
        # Rows that go on when others have ended get a cache of their own beside the whole one.
        kv_cache=int((1 + LEAVE) * rows * length * cache_bytes_per_token(policy))
        + footprint.sampling_copies * rows * vocabulary * FLOAT32,
        activations=footprint.adapters * activations,
        logits=footprint.logit_copies * min(tokens * vocabulary, CHUNK_LOGITS) * FLOAT32,
    )


def episode_tokens(policy: Policy, rollout: RolloutConfig, bots: Bots) -> int:
    """Tokens of the longest of a few episodes whose replies are as long as they may be."""
    lengths = []
    for seed in training_seeds(0, 0, 8):
        bot = bots.spawn(seed)
        turns = [bot.opening()]
        for _ in range(rollout.turns):
            ids = (policy.pad_id,) * rollout.max_new_tokens
            answer = bot.longest() if isinstance(bot, ModelBot) else bot.answer("")
            turns += [Turn("assistant", "", token_ids=ids), answer]
        lengths.append(len(policy.encode(Conversation(tuple(turns))).ids))
    return max(lengths)


def cache_bytes_per_token(policy: Policy) -> int:
    """Keys and values of one token over all blocks; a sliding window would hold fewer."""
    config = policy.text_config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # An architecture that does not tell the two apart has keys and values for every head.
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    per_block = 2 * heads * head * policy.dtype.itemsize
    return int(config.num_hidden_layers * per_block)


def activation_bytes(policy: Policy, tokens: int, width: int, checkpointing: bool) -> int:
    """What autograd keeps of one forward pass, and the work of one block in the backward pass.

    Args:
        policy: With its adapter.
        tokens: Of the batch, padding included.
        width: Of the batch; attention may keep more per token in longer rows.
        checkpointing: Blocks keep their inputs alone and are computed again, one at a time.
    """
    short, long = PROBE_WIDTHS
    per_token = [saved_bytes(policy, PROBE_ROWS, w) / (PROBE_ROWS * w) for w in PROBE_WIDTHS]
    slope = max(0.0, (per_token[1] - per_token[0]) / (long - short))
    kept = tokens * (per_token[0] + slope * (width - short))
    blocks = sum(
        any(p.requires_grad for p in layer.parameters()) for layer in decoder_layers(policy.model)
    )
    if checkpointing:
        inputs = blocks * tokens * policy.hidden_size * policy.dtype.itemsize
        kept = inputs + kept / max(1, blocks)
    inner = inner_width(policy.text_config)
    return int(kept + WORK_COPIES * tokens * inner * policy.dtype.itemsize)


def inner_width(config: Any) -> int:
    """Width of a block's feed-forward part, which architectures call by three names."""
    names = ("intermediate_size", "ffn_dim", "n_inner")
    width = next((size for name in names if (size := getattr(config, name, None))), None)
    return int(width or 4 * config.hidden_size)  # GPT-2 leaves its own unsaid


def saved_bytes(policy: Policy, rows: int, width: int) -> int:
    """Bytes that autograd keeps of one forward pass over ``rows`` x ``width`` tokens.

    Every storage counts once and as a whole, and the model's own parameters not at all.
    """
    of_model = {p.untyped_storage()._cdata for p in policy.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held on to, so that no address is used twice

    def pack(tensor: Tensor) -> None:
        # Nothing is handed back: no backward pass follows, and a graph that held its own tensors
        # through this hook would never be freed, nor the model with it.
        storage = tensor.untyped_storage()
        if storage._cdata not in of_model:
            kept[storage._cdata] = storage

    ids = torch.ones(rows, width, dtype=torch.long, device=policy.device)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    mask = None
    if policy.device.type == "meta":
        # Whole, or transformers would look into it; what is not there cannot be looked at.
        mask = torch.ones(rows, 1, width, width, dtype=torch.bool, device=policy.device)
    with torch.enable_grad(), hooks:
        policy.hidden(TokenBlock(ids, mask))
    return sum(storage.nbytes() for storage in kept.values())


def memory_limit(device: torch.device, limit_gb: float | None, held: int) -> float:
    """Bytes that a run may use: what was asked for, or what the device has left.

    Args:
        device: Of the run.
        limit_gb: From the config, 10^9 bytes; None = whatever is there.
        held: Bytes that this run holds already and that its plan counts.
    """
    if limit_gb is not None:
        return limit_gb * 1e9
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + held)
    return float(psutil.virtual_memory().available + held)


def as_record(plan: MemoryPlan, limit: float) -> Mapping[str, Any]:
    """The plan as it goes to memory.json, bytes."""
    return {**plan.parts(), "total": plan.total, "limit": limit}
