"""All adapters of a policy as one: merged into the weights for a while, or written as one export.

"Bake" is to add the products of the adapters to the weights that they lie on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from homeostat.files import naming_full_disk
from homeostat.models.adapter_files import save_adapter
from homeostat.models.adapters import Policy
from homeostat.types import TokenBlock

STACK = "stack"  # all rounds as one adapter, while they are exported


@contextmanager
def baked(policy: Policy, beside: Path | None = None) -> Iterator[None]:
    """Within this context the adapters are merged into the weights; then the base is back.

    To the bit: subtracting what was added would leave rounding behind, so the weights as they were
    wait in a temporary file, not in memory.

    Args:
        policy: With its adapters.
        beside: A folder for that file, as large as the weights; None = the system's own for
            temporary files, which is often small.

    Raises:
        HomeostatError: The disk is full.
    """
    merged = {
        name: module
        for name, module in policy.model.named_modules()
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer")
    }
    with TemporaryDirectory(dir=beside) as folder:
        kept = Path(folder) / "base.safetensors"
        with naming_full_disk(Path(folder).parent):
            save_file({name: m.base_layer.weight.data for name, m in merged.items()}, kept)
        policy.model.base_model.merge_adapter(policy.rounds)
        try:
            yield
        finally:
            policy.model.base_model.unmerge_adapter()
            with safe_open(kept, framework="pt") as stored:
                for name, module in merged.items():
                    module.base_layer.weight.data.copy_(stored.get_tensor(name))


@torch.no_grad()
def verify_bake(policy: Policy, ids: Int[Tensor, "B T"], beside: Path | None = None) -> float:
    """Largest difference of log-probability between stack and merged weights on some tokens.

    Args:
        policy: With its adapters.
        ids: Rows without padding.
        beside: A folder that holds another copy of the weights meanwhile, as for `baked`.

    Returns:
        Nats, over all positions and the whole vocabulary.
    """
    stacked = _log_probabilities(policy, ids)
    with baked(policy, beside):
        merged = _log_probabilities(policy, ids)
    return float((stacked - merged).abs().max())


def _log_probabilities(policy: Policy, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
    return policy.unembed(policy.hidden(TokenBlock(ids))).log_softmax(dim=-1)


def export_merged(policy: Policy, folder: Path) -> None:
    """Write one plain model, adapters merged in, with its tokenizer."""
    with baked(policy, beside=folder.parent):
        weights = {
            name.replace(".base_layer", ""): value
            for name, value in policy.base.model.state_dict().items()
            if ".lora_" not in name
        }
        policy.base.model.save_pretrained(str(folder), state_dict=weights)
    policy.tokenizer.save_pretrained(str(folder))


def export_adapter(policy: Policy, folder: Path) -> None:
    """Write the whole stack as one adapter, whose rank is the sum of the rounds'."""
    if len(policy.rounds) == 1:
        save_adapter(policy, folder)
        return
    ones = [1.0] * len(policy.rounds)
    policy.model.add_weighted_adapter(policy.rounds, ones, STACK, combination_type="cat")
    try:
        policy.model.save_pretrained(str(folder), selected_adapters=[STACK])
        for path in (folder / STACK).iterdir():  # where peft puts what is not its default
            path.rename(folder / path.name)
        (folder / STACK).rmdir()
    finally:
        policy.model.delete_adapter(STACK)
        policy.activate(policy.rounds)
