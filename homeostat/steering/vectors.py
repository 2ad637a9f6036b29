"""Persona vectors: what speaking as one side of a trait adds to the residual stream.

    v_l = mean over contexts of h_l(positive) - h_l(negative), at the last token of the prompt

Raw scale: a dose multiplies the difference as it is. Source: the contrastive mean difference of
Panickssery et al. 2023, arXiv 2312.06681; Arditi et al. 2024, arXiv 2406.11717, for the ablation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from homeostat.config.persona import PersonaConfig
from homeostat.config.rows import read_rows
from homeostat.config.steering import DoseConfig, VectorConfig
from homeostat.errors import HomeostatError
from homeostat.files import writing
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.forward import READ_TOKENS, forward, read_in_batches
from homeostat.models.hooks import Steering, read_residual
from homeostat.types import Conversation, Progress, TokenStream, Turn, silent

MIN_RELATIVE_NORM = 1e-3  # of the residual stream; below that the two sides are the same


@dataclass(frozen=True)
class Context:
    """A user's message that has nothing to do with any trait."""

    id: str
    kind: str
    text: str


def read_contexts(path: str | None) -> list[Context]:
    """The packaged contexts, or those of a JSONL file with ``id``, ``kind`` and ``text``.

    Raises:
        HomeostatError: The file cannot be read, or a line lacks one of the three; says which.
    """
    source = files("homeostat") / "data" / "contexts.jsonl" if path is None else path
    name = f"trainer.vector.contexts_path={path}"
    contexts = []
    for number, row in read_rows(source, name, "give JSONL with id, kind and text"):
        for key in ("id", "kind", "text"):
            if not isinstance(row.get(key), str | int) or not str(row[key]).strip():
                given = f"is {row[key]!r}" if key in row else "is missing"
                raise HomeostatError(
                    f"{name}, line {number}: {key} {given}; every line is one JSON object with "
                    "id, kind and text."
                )
        contexts.append(Context(str(row["id"]), str(row["kind"]), str(row["text"])))
    if not contexts:
        raise HomeostatError(f"{name} holds no contexts; give JSONL with id, kind and text.")
    return contexts


def spread(contexts: Sequence[Context], seed: int) -> list[Context]:
    """The contexts shuffled so that any beginning of the list holds every kind equally often."""
    rng = np.random.default_rng(seed)
    by_kind: dict[str, list[Context]] = {}
    for index in rng.permutation(len(contexts)):
        by_kind.setdefault(contexts[index].kind, []).append(contexts[index])
    ranked = [(rank, context) for kind in by_kind.values() for rank, context in enumerate(kind)]
    return [context for _, context in sorted(ranked, key=lambda pair: pair[0])]


def as_persona(persona: PersonaConfig, side: str, text: str) -> Conversation:
    """A conversation whose system turn is one side of the persona; ``side`` positive, negative."""
    system = persona.prompt.format(persona=getattr(persona, side))
    return Conversation((Turn("system", system), Turn("user", text)))


def as_message(text: str) -> Conversation:
    """The same without a persona: a user's message alone."""
    return Conversation((Turn("user", text),))


@torch.no_grad()
def last_token_residual(
    policy: Policy,
    conversations: Sequence[Conversation],
    layers: Sequence[int],
    max_tokens: int = READ_TOKENS,
    progress: Progress = silent,
) -> dict[int, Float[Tensor, "N D"]]:
    """Residual stream after each block at the last token of each prompt, policy as it is."""
    streams = [policy.encode(talk) for talk in conversations]

    def read(part: list[TokenStream], _places: list[int]) -> list[Tensor]:
        batch = pad(part, policy.pad_id, policy.device, "left")
        last: dict[int, Tensor] = {}

        def on_layer(layer: int, hidden: Tensor) -> None:
            last[layer] = hidden[:, -1].float().cpu()

        with read_residual(policy.trunk, layers, on_layer, stop_after=True):
            forward(policy, batch)
        return list(torch.stack([last[layer] for layer in layers], dim=1))

    states_NLD = torch.stack(read_in_batches(streams, read, max_tokens, progress))
    return {layer: states_NLD[:, i].contiguous() for i, layer in enumerate(layers)}


def student_shift(
    policy: Policy, contexts: Sequence[Context], layers: Sequence[int]
) -> dict[int, Float[Tensor, " D"]]:
    """How far the student's residual stream lies from the base's, by block.

    A mean over messages without any system line, at the last token of the prompt, as the vectors
    are read.

    Args:
        policy: The student.
        contexts: The messages.
        layers: Blocks to read.
    """
    talks = [as_message(context.text) for context in contexts]
    own = last_token_residual(policy, talks, layers)
    with policy.reference():
        base = last_token_residual(policy, talks, layers)
    return {layer: (own[layer] - base[layer]).mean(dim=0) for layer in layers}


@dataclass(frozen=True)
class PersonaVector:
    """A direction for each block of a band.

    Attributes:
        vectors: By block, activation units; a dose of 1 adds one of them.
        relative_norm: By block, its norm as a share of the residual stream's mean norm there.
        kind: How it was made.
    """

    vectors: Mapping[int, Float[Tensor, " D"]]
    relative_norm: Mapping[int, float]
    kind: str

    def steering(
        self, dose: float | Sequence[float] | Float[Tensor, " B"], config: DoseConfig
    ) -> Steering:
        """What steers with this vector; one dose for all rows, or one for each."""
        doses = torch.as_tensor(dose, dtype=torch.float32).reshape(-1)
        return Steering(
            self.vectors,
            doses,
            ablate=self.kind == "directional_ablation",
            half_life=config.half_life,
            gate=config.gate,
            everywhere=config.positions == "all",
        )

    def ablation(self, num_layers: int) -> Steering:
        """What removes the component along the band's mean direction after every block.

        At every position, so that no block can write it anew for a later one to read. **Differs**
        from Arditi et al. 2024, section 2.4: embeddings, and what attention hands to the MLP within
        a block, keep it.
        """
        directions = [vector / vector.norm() for _, vector in sorted(self.vectors.items())]
        mean = torch.stack(directions).mean(dim=0)
        everywhere = dict.fromkeys(range(num_layers), mean)
        return Steering(everywhere, torch.ones(1), ablate=True, everywhere=True)

    def cosine(self, other: Mapping[int, Float[Tensor, " D"]]) -> float:
        """Cosine with a direction over all blocks; 0 with one of length 0."""
        own, others = self._flat(self.vectors), self._flat(other)
        return float(torch.nn.functional.cosine_similarity(own, others, dim=0))

    def dose_of(self, shift: Mapping[int, Float[Tensor, " D"]]) -> float:
        """How much of the vector lies in a shift: 1 is as far along it as the vector is long."""
        own = self._flat(self.vectors)
        return float(self._flat(shift) @ own / (own @ own))

    def state_dict(self) -> dict[str, Any]:
        """What makes the vector anew, as tensors and plain values."""
        return {
            "vectors": dict(self.vectors),
            "relative_norm": dict(self.relative_norm),
            "kind": self.kind,
        }

    def _flat(self, by_layer: Mapping[int, Float[Tensor, " D"]]) -> Tensor:
        return torch.cat([by_layer[layer] for layer in sorted(self.vectors)])

    def save(self, path: Path, provenance: Mapping[str, str]) -> None:
        """Write the vectors as safetensors, where they come from in the file's metadata."""
        tensors = {f"block_{layer}": vector for layer, vector in self.vectors.items()}
        with writing(path) as fresh:
            fresh.write_bytes(_in_order(save(tensors, {"kind": self.kind, **provenance})))


def _in_order(stored: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library's order differs each time."""
    size = int.from_bytes(stored[:8], "little")
    header = json.dumps(json.loads(stored[8 : 8 + size]), sort_keys=True, separators=(",", ":"))
    ordered = header.encode()
    ordered += b" " * (-len(ordered) % 8)
    return len(ordered).to_bytes(8, "little") + ordered + stored[8 + size :]


def band(layers: Sequence[float], num_layers: int) -> tuple[int, ...]:
    """Blocks whose place in the depth lies within two fractions; at least one."""
    low, high = (round(fraction * num_layers) for fraction in layers)
    first = min(low, num_layers - 1)
    return tuple(range(first, max(high, first + 1)))


def extract(
    policy: Policy,
    persona: PersonaConfig,
    contexts: Sequence[Context],
    config: VectorConfig,
    seed: int,
    progress: Progress = silent,
) -> PersonaVector:
    """The persona's vector under the policy as it is.

    Args:
        policy: The base in the first round, the student so far in later ones.
        persona: Its two sides.
        contexts: To speak in; `VectorConfig.contexts` of them are enough.
        config: Kind and band.
        seed: Of the random control.
        progress: Told how many prompts are read.

    Raises:
        HomeostatError: Too few contexts, or the two sides hardly differ.
    """
    if len(contexts) < config.contexts:
        raise HomeostatError(
            f"trainer.vector.contexts={config.contexts} and only {len(contexts)} contexts are "
            "there; lower it, or give more by trainer.vector.contexts_path."
        )
    used = contexts[: config.contexts]
    layers = band(config.layers, policy.num_layers)
    talks = [as_persona(persona, side, c.text) for side in ("positive", "negative") for c in used]
    states = last_token_residual(policy, talks, layers, progress=progress)
    differences = {layer: h[: len(used)] - h[len(used) :] for layer, h in states.items()}
    scale = {layer: float(h.norm(dim=-1).mean()) for layer, h in states.items()}
    return make_vector(differences, scale, config.kind, persona.name, seed)


def make_vector(
    differences: Mapping[int, Float[Tensor, "N D"]],
    scale: Mapping[int, float],
    kind: str,
    name: str,
    seed: int,
) -> PersonaVector:
    """A vector from the differences positive - negative of every context.

    ``pca`` is the first principal direction of the differences about 0, turned to the side of their
    mean and given its norm; ``random`` has the mean's norm and no meaning.

    Args:
        differences: By block.
        scale: Mean norm of the residual stream, by block.
        kind: One of `homeostat.config.steering.VECTORS`.
        name: Of the persona, for the error.
        seed: Of the random control.

    Raises:
        HomeostatError: The mean difference is next to nothing in every block.
    """
    means = {layer: d.mean(dim=0) for layer, d in differences.items()}
    relative = {layer: float(v.norm()) / scale[layer] for layer, v in means.items()}
    if max(relative.values()) < MIN_RELATIVE_NORM:
        raise HomeostatError(
            f"persona {name} gives a vector of {max(relative.values()):.1e} of the residual "
            "stream's norm, which is nothing: its two sides read the same to this model; make "
            "them direct opposites, or choose other trainer.vector.layers."
        )
    vectors = means
    if kind == "pca":
        vectors = {layer: _principal(d) for layer, d in differences.items()}
    elif kind == "random":
        generator = torch.Generator().manual_seed(seed)
        draws = {k: torch.randn(v.shape, generator=generator) for k, v in means.items()}
        vectors = {k: draw * means[k].norm() / draw.norm() for k, draw in draws.items()}
    return PersonaVector(vectors, relative, kind)


def _principal(differences: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    mean = differences.mean(dim=0)
    direction = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    sign = 1.0 if float(direction @ mean) >= 0 else -1.0
    principal: Tensor = sign * mean.norm() * direction
    return principal
