"""Reading and changing the residual stream: the only file that registers hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OnLayer = Callable[[int, Tensor], None]


class _Stop(Exception):
    """Leaves a forward pass whose remaining layers nobody reads."""


def decoder_layers(trunk: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a language model, in order.

    Raises:
        ValueError: The module has no list of blocks named ``layers``.
    """
    named = [
        module
        for name, module in trunk.named_modules()
        if name.split(".")[-1] == "layers"
        and isinstance(module, nn.ModuleList)
        and "vision" not in name
    ]
    if not named:
        raise ValueError(f"{type(trunk).__name__} has no decoder blocks named 'layers'.")
    return max(named, key=len)


def layers_at(fractions: Sequence[float], num_layers: int) -> tuple[int, ...]:
    """Indices of the blocks at the given fractions of the depth, sorted, without repeats."""
    return tuple(sorted({min(num_layers - 1, int(f * num_layers)) for f in fractions}))


@contextmanager
def read_residual(
    trunk: nn.Module, layers: Sequence[int], on_layer: OnLayer, stop_after: bool = False
) -> Iterator[None]:
    """Call ``on_layer(layer, hidden)`` with the residual stream after each named decoder block.

    The hidden states are those after block ``layer`` (0-based), that is transformers'
    ``hidden_states[layer + 1]`` except for the last block, where transformers applies the final
    norm. Hooks are gone after the context, also after an exception.

    Args:
        trunk: The model without its unembedding.
        layers: Blocks to read.
        on_layer: Gets the block's index and its output [B, T, D]; must not change it.
        stop_after: Leave the forward pass after the deepest named block: the pass then returns
            nothing, and the context swallows that.
    """
    blocks = decoder_layers(trunk)
    deepest = max(layers, default=-1)

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            on_layer(layer, output[0] if isinstance(output, tuple) else output)
            if stop_after and layer == deepest:
                raise _Stop

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def noisy_residual(trunk: nn.Module, layer: int, norm: float, seed: int) -> Iterator[None]:
    """Add Gaussian noise to the residual stream after one decoder block, at every position.

    The draws are new in every forward pass; the same passes after the same seed get the same ones.

    Args:
        trunk: The model without its unembedding.
        layer: The block.
        norm: Root mean square L2 norm of what is added, activation units.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        noise = torch.randn(hidden.shape, generator=generator) * norm / hidden.shape[-1] ** 0.5
        changed = hidden + noise.to(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = decoder_layers(trunk)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
