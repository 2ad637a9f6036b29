"""A cache with room to grow, against concatenation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.kv_cache import RoomyLayer, is_roomy, reserve, roomy_cache


def columns(seed: int, count: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Keys and values of some new columns, two heads of width 4."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 2, count, 4, generator=generator)
    return keys, values


def assert_holds(layer: RoomyLayer, parts: list[tuple[Tensor, Tensor]]) -> None:
    assert torch.equal(layer.keys, torch.cat([keys for keys, _ in parts], dim=2))
    assert torch.equal(layer.values, torch.cat([values for _, values in parts], dim=2))
    assert layer.get_seq_length() == sum(keys.shape[2] for keys, _ in parts)


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_it_holds_what_concatenation_would(spare: int) -> None:
    layer, parts = RoomyLayer(), [columns(seed, count) for seed, count in enumerate((4, 1, 1, 3))]
    layer.spare = spare
    for number, part in enumerate(parts, start=1):
        keys, values = layer.update(*part)
        assert_holds(layer, parts[:number])
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_with_room_nothing_is_copied() -> None:
    layer = RoomyLayer()
    layer.spare = 3
    layer.update(*columns(0, 2))
    where = layer.keys.data_ptr()
    for seed in range(3):
        layer.update(*columns(seed, 1))
        assert layer.keys.data_ptr() == where
    layer.update(*columns(9, 1))
    assert layer.keys.data_ptr() != where


@pytest.mark.parametrize("how", ["select", "deepcopy"])
def test_what_comes_of_it_goes_on_alone(how: str) -> None:
    layer, first = RoomyLayer(), columns(0, 2)
    layer.spare = 4
    layer.update(*first)
    if how == "select":
        other = copy.copy(layer)
        other.batch_select_indices(torch.tensor([0, 1, 2]))
    else:
        other = copy.deepcopy(layer)
    ours, theirs = columns(1, 1), columns(2, 1)
    layer.update(*ours)
    other.update(*theirs)
    assert_holds(layer, [first, ours])
    assert_holds(other, [first, theirs])


def test_rows_that_went_on_alone_come_back() -> None:
    layer, first, later = RoomyLayer(), columns(0, 2), columns(1, 2, rows=2)
    layer.update(*first)
    part = copy.copy(layer)
    part.batch_select_indices(torch.tensor([2, 0]))
    part.update(*later)
    layer.take_back(torch.tensor([2, 0]), part, start=2)
    assert layer.get_seq_length() == 4
    assert torch.equal(layer.keys[:, :, :2], first[0])
    assert torch.equal(layer.keys[[2, 0], :, 2:], later[0])
    assert torch.equal(layer.values[[2, 0], :, 2:], later[1])
    assert not layer.keys[1, :, 2:].any()  # masked, but a NaN would spread


def test_a_cache_of_a_model_has_room(make_policy: Callable[..., Policy]) -> None:
    cache = roomy_cache(make_policy().text_config)
    reserve(cache, 7)
    assert is_roomy(cache)
    assert [layer.spare for layer in cache.layers] == [7] * 4
