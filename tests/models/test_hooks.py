from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from homeostat.models.adapters import Policy
from homeostat.models.hooks import decoder_layers, layers_at, noisy_residual, read_residual

IDS = torch.tensor([[5, 80, 33, 12, 200], [9, 9, 41, 7, 101]])


class Boom(Exception):
    pass


def ignore(_layer: int, _hidden: Tensor) -> None:
    pass


@torch.no_grad()
def read_with_noise(trunk: nn.Module, ids: Tensor, norm: float, seed: int = 0) -> list[Tensor]:
    """The output of every block, two forward passes after one another, noise after block 1."""
    seen: list[Tensor] = []
    with (
        noisy_residual(trunk, 1, norm, seed),
        read_residual(trunk, (0, 1, 2), lambda _, hidden: seen.append(hidden)),
    ):
        trunk(input_ids=ids)
        trunk(input_ids=ids)
    return seen


def count_runs(trunk: nn.Module) -> list[int]:
    """The list of the blocks that ran, filled by every later forward pass."""
    ran: list[int] = []
    for number, block in enumerate(decoder_layers(trunk)):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    return ran


@torch.no_grad()
def test_residual_equals_the_models_hidden_states(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    stir(policy)
    seen: dict[int, Tensor] = {}
    with read_residual(policy.trunk, (0, 1, 2, 3), seen.__setitem__):
        output = policy.trunk(input_ids=IDS, output_hidden_states=True)
    assert list(seen) == [0, 1, 2, 3]
    for layer in (0, 1, 2):
        assert torch.equal(seen[layer], output.hidden_states[layer + 1])
    assert not torch.equal(seen[3], output.hidden_states[4])
    assert torch.equal(policy.trunk.norm(seen[3]), output.hidden_states[4])


@torch.no_grad()
def test_only_the_named_layers_are_read(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    seen: dict[int, Tensor] = {}
    with read_residual(policy.trunk, (2, 0), seen.__setitem__):
        policy.trunk(input_ids=IDS)
    assert sorted(seen) == [0, 2]


@torch.no_grad()
def test_output_is_the_same_with_during_and_after_the_hook(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    before = policy.trunk(input_ids=IDS).last_hidden_state
    with read_residual(policy.trunk, (0, 3), ignore):
        within = policy.trunk(input_ids=IDS).last_hidden_state
    after = policy.trunk(input_ids=IDS).last_hidden_state
    assert torch.equal(within, before)
    assert torch.equal(after, before)


@torch.no_grad()
@pytest.mark.parametrize("stop_after", [False, True])
def test_hooks_are_gone_after_the_context(
    make_policy: Callable[..., Policy], stop_after: bool
) -> None:
    policy = make_policy()
    seen: list[int] = []
    with read_residual(policy.trunk, (1,), lambda layer, _: seen.append(layer), stop_after):
        policy.trunk(input_ids=IDS)
    assert seen == [1]
    policy.trunk(input_ids=IDS)
    assert seen == [1]


@torch.no_grad()
def test_hooks_are_gone_after_an_exception_in_the_block(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    seen: list[int] = []

    def read_and_fail() -> None:
        with read_residual(policy.trunk, (0, 1), lambda layer, _: seen.append(layer)):
            policy.trunk(input_ids=IDS)
            raise Boom

    with pytest.raises(Boom):
        read_and_fail()
    assert seen == [0, 1]
    policy.trunk(input_ids=IDS)
    assert seen == [0, 1]


@torch.no_grad()
def test_hooks_are_gone_after_an_exception_in_the_reader(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()

    def fail(_layer: int, _hidden: Tensor) -> None:
        raise Boom

    with pytest.raises(Boom), read_residual(policy.trunk, (1,), fail):
        policy.trunk(input_ids=IDS)
    assert policy.trunk(input_ids=IDS).last_hidden_state.shape == (2, 5, policy.hidden_size)


@torch.no_grad()
def test_stop_after_runs_no_later_block(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    whole: dict[int, Tensor] = {}
    with read_residual(policy.trunk, (0, 1), whole.__setitem__):
        policy.trunk(input_ids=IDS)
    ran = count_runs(policy.trunk)
    seen: dict[int, Tensor] = {}
    with read_residual(policy.trunk, (1, 0), seen.__setitem__, stop_after=True):
        policy.trunk(input_ids=IDS)
    assert ran == [0, 1]
    assert torch.equal(seen[0], whole[0])
    assert torch.equal(seen[1], whole[1])
    ran.clear()
    policy.trunk(input_ids=IDS)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("norm", [0.5, 8.0])
def test_noise_has_the_norm_that_was_asked_for(
    make_policy: Callable[..., Policy], norm: float
) -> None:
    """800 positions of 32 numbers each: the standard error is 0.5%."""
    trunk, ids = make_policy().trunk, torch.arange(800).reshape(2, 400) % 250
    clean, noisy = (read_with_noise(trunk, ids, size)[:3] for size in (0.0, norm))
    added = noisy[1] - clean[1]
    assert added.pow(2).sum(dim=-1).mean().sqrt().item() == pytest.approx(norm, rel=0.03)
    assert abs(added.mean().item()) < 0.02 * norm
    assert torch.equal(noisy[0], clean[0])
    assert not torch.allclose(noisy[2] - noisy[1], clean[2] - clean[1])


def test_noise_depends_on_the_seed_and_is_new_in_every_pass(
    make_policy: Callable[..., Policy],
) -> None:
    trunk = make_policy().trunk
    one, again, other = (read_with_noise(trunk, IDS, 1.0, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.allclose(one[1], other[1])
    assert not torch.allclose(one[1], one[4])


@pytest.mark.parametrize("error", [False, True])
@torch.no_grad()
def test_noise_is_gone_after_the_context(make_policy: Callable[..., Policy], error: bool) -> None:
    trunk = make_policy().trunk
    before = trunk(input_ids=IDS).last_hidden_state

    def pass_by() -> Tensor:
        with noisy_residual(trunk, 0, 1.0, 0):
            found = trunk(input_ids=IDS).last_hidden_state
            if error:
                raise Boom
        return found

    if error:
        with pytest.raises(Boom):
            pass_by()
    else:
        assert not torch.allclose(pass_by(), before)
    assert torch.equal(trunk(input_ids=IDS).last_hidden_state, before)


def test_noise_leaves_torchs_own_random_numbers_alone(make_policy: Callable[..., Policy]) -> None:
    trunk = make_policy().trunk
    before = torch.random.get_rng_state()
    read_with_noise(trunk, IDS, 1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_is_added_to_the_first_of_several_outputs() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x.double(), "kept"

    trunk = nn.Module()
    trunk.layers = nn.ModuleList([Pair()])
    with noisy_residual(trunk, 0, 3.0, 0):
        hidden, kept = trunk.layers[0](torch.zeros(1, 900, 4))
    assert kept == "kept"
    assert hidden.dtype == torch.float64
    assert hidden.pow(2).sum(dim=-1).mean().sqrt().item() == pytest.approx(3, rel=0.06)


@pytest.mark.parametrize(
    ("fractions", "blocks", "expected"),
    [
        ((0.25, 0.5, 0.75), 4, (1, 2, 3)),
        ((0.25, 0.5, 0.75), 30, (7, 15, 22)),
        ((0.3, 0.45, 0.6), 30, (9, 13, 18)),
        ((1.0, 0.0), 4, (0, 3)),
        ((0.5, 0.55, 0.5), 4, (2,)),
        ((), 4, ()),
    ],
)
def test_layers_at(fractions: tuple[float, ...], blocks: int, expected: tuple[int, ...]) -> None:
    assert layers_at(fractions, blocks) == expected


def test_decoder_layers_are_those_of_the_text_model() -> None:
    text = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1) for _ in range(2)])})
    vision = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1) for _ in range(5)])})
    both = nn.ModuleDict({"vision_tower": vision, "language_model": text})
    assert decoder_layers(both) is text["layers"]


def test_module_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no decoder blocks"):
        decoder_layers(nn.Linear(1, 1))
