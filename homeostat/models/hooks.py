"""Reading and changing the residual stream: the only file that registers hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

OnLayer = Callable[[int, Tensor], None]


# How architectures call their list of decoder blocks: most, GPT-2 and its kin.
BLOCKS = ("layers", "h")


class _Stop(Exception):
    """Leaves a forward pass whose remaining layers nobody reads."""


def decoder_layers(trunk: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a language model, in order.

    Raises:
        ValueError: The module has no list of blocks that is named as one of ``BLOCKS``.
    """
    named = [
        module
        for name, module in trunk.named_modules()
        if name.split(".")[-1] in BLOCKS
        and isinstance(module, nn.ModuleList)
        and "vision" not in name
    ]
    if not named:
        raise ValueError(
            f"{type(trunk).__name__} has no decoder blocks named {' or '.join(BLOCKS)}."
        )
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
    stop = _Stop()

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            on_layer(layer, output[0] if isinstance(output, tuple) else output)
            if stop_after and layer == deepest:
                raise stop

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield
    except _Stop as stopped:
        if stopped is not stop:  # another context's, around this one
            raise
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skip_blocks(trunk: nn.Module, depth: int, states: Float[Tensor, "B T D"]) -> Iterator[None]:
    """Within this context the first ``depth`` blocks are not computed: ``states`` come out of them.

    Args:
        trunk: The model without its unembedding.
        depth: At least 1.
        states: What the last of those blocks would put out.
    """
    below = list(decoder_layers(trunk))[:depth]
    for layer in below[:-1]:
        layer.forward = lambda hidden, *_args, **_kwargs: hidden
    below[-1].forward = lambda *_args, **_kwargs: states
    try:
        yield
    finally:
        for layer in below:
            del layer.forward


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


@dataclass
class Steering:
    """What is added to the residual stream where replies are decoded.

    A position is steered if a reply's token is predicted there, which begins with the last token
    of the prompt, or wherever it is (``everywhere``). `enter` says before each forward pass which
    token of its reply each position predicts, from 0; -1 where nothing is steered, such as in
    prompts and padding.

    Attributes:
        vectors: By decoder block, what a dose of 1 adds after it, activation units.
        dose_B: Dose of each row; one number serves all rows.
        ablate: Remove ``dose`` times the component along the vector instead of adding it.
        half_life: Tokens of a reply after which the dose has halved; None = steady.
        gate: Leave a position alone whose cosine with the vector is above this; None = never.
        everywhere: Steer positions that predict no reply, too, as the first of a reply.
        index_BT: Of the forward pass to come; None = nothing is steered in it.
    """

    vectors: Mapping[int, Float[Tensor, " D"]]
    dose_B: Float[Tensor, " B"]
    ablate: bool = False
    half_life: float | None = None
    gate: float | None = None
    everywhere: bool = False
    index_BT: Int[Tensor, "B T"] | None = None

    def rows(self, start: int, stop: int) -> Steering:
        """The same for some of the rows."""
        shared = len(self.dose_B) == 1
        return self if shared else replace(self, dose_B=self.dose_B[start:stop])

    def enter(self, ids: Int[Tensor, "B T"], predicts: Int[Tensor, "B T"] | None) -> None:
        """Take in which tokens the forward pass to come reads, and what they predict."""
        if self.everywhere:
            predicts = (torch.zeros_like(ids) if predicts is None else predicts).clamp(min=0)
        self.index_BT = predicts

    def shift(self, hidden: Float[Tensor, "B T D"], layer: int) -> Float[Tensor, "B T D"]:
        """What is added to the output of a block."""
        if self.index_BT is None:
            return torch.zeros_like(hidden)
        vector = self.vectors[layer].to(hidden.device, torch.float32)
        steered = self.index_BT >= 0
        amount = self.dose_B.to(hidden.device, torch.float32)[:, None] * steered
        if self.half_life is not None:
            amount = amount * 0.5 ** (self.index_BT.clamp(min=0) / self.half_life)
        along = hidden.float() @ (vector / vector.norm())
        if self.gate is not None:
            amount = amount * (along <= self.gate * hidden.float().norm(dim=-1))
        if self.ablate:
            amount = -amount * along / vector.norm()
        return (amount[..., None] * vector).to(hidden)


@contextmanager
def add_residual(trunk: nn.Module, steering: Steering) -> Iterator[None]:
    """Within this context ``steering`` acts on every forward pass of the trunk.

    The hooks are gone after the context, also after an exception.
    """
    blocks = decoder_layers(trunk)

    def hook_for(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if steering.index_BT is None:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            changed = hidden + steering.shift(hidden, layer)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer)) for layer in steering.vectors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
