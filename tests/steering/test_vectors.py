"""Persona vectors against differences by hand, and what makes them useless."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from configs import dose_config, vector_config
from safetensors import safe_open
from torch import Tensor

from homeostat.config.persona import PersonaConfig, ProbePair
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.hooks import read_residual
from homeostat.steering.vectors import (
    Context,
    PersonaVector,
    as_message,
    as_persona,
    band,
    extract,
    last_token_residual,
    make_vector,
    read_contexts,
    spread,
    student_shift,
)
from homeostat.types import TokenBlock

PERSONA = PersonaConfig(
    name="calm",
    positive="someone who breathes slowly and answers softly",
    negative="someone who panics quickly and answers loudly",
    probe_pairs=[ProbePair("q", "a", "b"), ProbePair("q", "c", "d")],
    diary="How are you?",
)
DIFFERENCES = {1: torch.tensor([[2.0, 0.0], [4.0, 1.0], [3.0, -1.0]])}


def test_the_packaged_contexts_are_many_and_of_ten_kinds() -> None:
    contexts = read_contexts(None)
    kinds = Counter(context.kind for context in contexts)
    assert len(contexts) >= 300
    assert len(kinds) == 10
    assert len({context.text for context in contexts}) == len(contexts)
    half = Counter(context.kind for context in spread(contexts, seed=0)[:100])
    assert set(half.values()) == {10}, "any beginning holds every kind equally often"


def test_a_context_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"id": "a", "kind": "x", "text": "Hello."}, {"id": "b", "kind": "y"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        HomeostatError, match=r"contexts_path=.*own\.jsonl, line 2: text is missing"
    ):
        read_contexts(str(path))
    path.write_text(json.dumps(rows[0]))
    assert read_contexts(str(path))[0].text == "Hello."
    with pytest.raises(HomeostatError, match="contexts_path=nowhere cannot be read"):
        read_contexts("nowhere")


def test_the_mean_difference_by_hand(make_policy: Callable[..., Policy]) -> None:
    """At the last token of the prompt, one prompt at a time, without padding."""
    policy = make_policy()
    contexts = spread(read_contexts(None), seed=0)[:8]
    config = vector_config(contexts=8, layers=[0.25, 0.75])
    found = extract(policy, PERSONA, contexts, config, seed=0)
    assert sorted(found.vectors) == [1, 2]
    for layer, vector in found.vectors.items():
        total = torch.zeros(policy.hidden_size)
        for context in contexts:
            for side, sign in (("positive", 1), ("negative", -1)):
                ids = policy.encode(as_persona(PERSONA, side, context.text)).ids
                with torch.no_grad():
                    out = policy.trunk(torch.tensor([ids]), output_hidden_states=True)
                total += sign * out.hidden_states[layer + 1][0, -1]
        assert torch.allclose(vector, total / 8, atol=1e-5)


def test_batches_change_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    talks = [as_message(context.text) for context in read_contexts(None)[:9]]
    whole = last_token_residual(policy, talks, (2,))[2]
    alone = last_token_residual(policy, talks, (2,), max_tokens=1)[2]
    assert torch.allclose(whole, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([0.45, 0.55], (14, 15)), ([0.0, 0.1], (0, 1, 2)), ([0.5, 0.51], (15,)), ([0.99, 1.0], (29,))],
)
def test_the_band(layers: list[float], expected: tuple[int, ...]) -> None:
    assert band(layers, 30) == expected


def test_the_mean_keeps_its_scale_and_sign() -> None:
    found = make_vector(DIFFERENCES, {1: 10.0}, "mean_diff", "calm", seed=0)
    assert found.vectors[1].tolist() == [3.0, 0.0]
    assert found.relative_norm == {1: pytest.approx(0.3)}


def test_the_principal_direction_is_uncentred_and_turned_to_the_mean() -> None:
    found = make_vector(DIFFERENCES, {1: 10.0}, "pca", "calm", seed=0).vectors[1]
    second = DIFFERENCES[1].T @ DIFFERENCES[1]
    direction = torch.linalg.eigh(second).eigenvectors[:, -1]
    expected = 3.0 * direction * torch.sign(direction[0])
    assert torch.allclose(found, expected, atol=1e-5)
    flipped = make_vector({1: -DIFFERENCES[1]}, {1: 10.0}, "pca", "calm", seed=0).vectors[1]
    assert torch.allclose(flipped, -expected, atol=1e-5)


def test_the_random_control_has_the_norm_and_its_own_seed() -> None:
    one, same, other = (
        make_vector(DIFFERENCES, {1: 10.0}, "random", "calm", seed).vectors[1] for seed in (1, 1, 2)
    )
    assert float(one.norm()) == pytest.approx(3.0)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_two_sides_that_read_the_same_are_refused() -> None:
    with pytest.raises(HomeostatError, match=r"persona calm gives a vector of .*direct opposites"):
        make_vector({1: 1e-5 * DIFFERENCES[1]}, {1: 10.0}, "mean_diff", "calm", seed=0)


def test_too_few_contexts_are_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(HomeostatError, match=r"contexts=64 and only 5 contexts are there"):
        extract(make_policy(), PERSONA, read_contexts(None)[:5], vector_config(), seed=0)


def test_the_cosine_spans_all_blocks() -> None:
    one = PersonaVector({1: torch.tensor([1.0, 0.0]), 2: torch.tensor([0.0, 2.0])}, {}, "mean_diff")
    other = PersonaVector(
        {1: torch.tensor([1.0, 0.0]), 2: torch.tensor([0.0, -2.0])}, {}, "mean_diff"
    )
    assert one.cosine(one.vectors) == pytest.approx(1)
    assert one.cosine(other.vectors) == pytest.approx((1 - 4) / 5)
    assert one.dose_of(one.vectors) == pytest.approx(1)
    assert one.dose_of({k: -2.5 * v for k, v in one.vectors.items()}) == pytest.approx(-2.5)
    nothing = {k: torch.zeros_like(v) for k, v in one.vectors.items()}
    assert (one.cosine(nothing), one.dose_of(nothing)) == (0, 0)


def test_the_student_s_shift_by_hand(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    """Each message alone, with the block's output taken by a hook of the test."""
    policy = make_policy()
    contexts = [Context(str(n), "k", "well? " * n) for n in (1, 5, 3)]
    found = student_shift(policy, contexts, (0, 1))
    assert all(float(shift.abs().max()) == 0 for shift in found.values()), "a fresh student"
    stir(policy)

    @torch.no_grad()
    def last(text: str, layer: int) -> Tensor:
        seen: list[Tensor] = []
        handle = policy.trunk.layers[layer].register_forward_hook(
            lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        policy.trunk(input_ids=torch.tensor([policy.encode(as_message(text)).ids]))
        handle.remove()
        return seen[0][0, -1]

    for layer, shift in student_shift(policy, contexts, (0, 1)).items():
        own = [last(context.text, layer) for context in contexts]
        with policy.model.disable_adapter():
            base = [last(context.text, layer) for context in contexts]
        expected = sum(a - b for a, b in zip(own, base, strict=True)) / 3
        assert torch.allclose(shift, expected, atol=1e-5)
        assert float(shift.norm()) > 0


def test_a_saved_vector_says_where_it_comes_from(tmp_path: Path) -> None:
    vector = PersonaVector({3: torch.tensor([1.0, 2.0])}, {3: 0.1}, "pca")
    vector.save(tmp_path / "v.safetensors", {"persona": "calm", "round": "1"})
    with safe_open(tmp_path / "v.safetensors", framework="pt") as stored:
        assert stored.get_tensor("block_3").tolist() == [1.0, 2.0]
        assert stored.metadata() == {"kind": "pca", "persona": "calm", "round": "1"}


def test_equal_vectors_are_equal_files(tmp_path: Path) -> None:
    vector = PersonaVector({k: torch.full((3,), float(k)) for k in (3, 12, 7)}, {}, "pca")
    paths = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for path in paths:
        vector.save(path, {"persona": "fülle", "round": "1", "model": "m"})
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="pt") as stored:
        assert stored.get_tensor("block_12").tolist() == [12.0] * 3


def test_only_ablation_removes() -> None:
    for kind, ablates in (("mean_diff", False), ("directional_ablation", True)):
        vector = make_vector(DIFFERENCES, {1: 10.0}, kind, "calm", seed=0)
        steering = vector.steering(torch.tensor([1.0, 2.0]), dose_config(half_life=8.0, gate=0.2))
        assert steering.ablate is ablates
        assert steering.dose_B.tolist() == [1.0, 2.0]
        assert (steering.half_life, steering.gate) == (8.0, 0.2)


@torch.no_grad()
def test_an_ablated_policy_has_nothing_along_the_direction(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    """After every block and at every position, prompt and padding included; and only then."""
    policy = make_policy()
    stir(policy)
    by_block = {0: torch.arange(16.0) + 1, 1: 3 - torch.arange(16.0)}
    by_block = {n: vector.repeat(policy.hidden_size // 16) for n, vector in by_block.items()}
    mean = sum(vector / vector.norm() for vector in by_block.values()) / 2
    direction = mean / mean.norm()
    ids = torch.tensor([policy.encode(as_message("well? well?")).ids])
    seen: dict[bool, list[Tensor]] = {False: [], True: []}

    def along(_layer: int, hidden: Tensor) -> None:
        seen[policy.is_steered].append((hidden @ direction).abs().max() / hidden.norm())

    layers = range(policy.num_layers)
    ablation = PersonaVector(by_block, {}, "mean_diff").ablation(policy.num_layers)
    plain = policy.hidden(TokenBlock(ids))
    with read_residual(policy.trunk, layers, along):
        policy.hidden(TokenBlock(ids))
    with policy.steered(ablation), read_residual(policy.trunk, layers, along):
        policy.hidden(TokenBlock(ids))
    assert len(seen[True]) == len(seen[False]) == policy.num_layers
    assert max(map(float, seen[True])) < 1e-6 < 1e-3 < min(map(float, seen[False]))
    with policy.steered(ablation), policy.reference():
        inside = policy.hidden(TokenBlock(ids))
    with policy.reference():
        assert torch.equal(policy.hidden(TokenBlock(ids)), inside), "the reference is unsteered"
    assert torch.equal(policy.hidden(TokenBlock(ids)), plain)
