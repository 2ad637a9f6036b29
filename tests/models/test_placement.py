"""Where a model computes, and in which number format: asked of the machine, and kept by a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from homeostat.errors import HomeostatError
from homeostat.models import placement
from homeostat.models.placement import bfloat16_speedup, native_bfloat16, place, resolve_device

pytestmark = pytest.mark.usefixtures("cache")


def be_here(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def have(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], speedup: float) -> None:
    """Be a processor that says this of itself, and shows this in a trial."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(placement, "bfloat16_speedup", lambda: speedup)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_unavailable_device_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_here(monkeypatch)
    with pytest.raises(HomeostatError, match=f"device={name} is not on this machine.*: cpu "):
        resolve_device(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_automatic_device(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_here(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device(expected) == torch.device(expected)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "bf16", "dtype", "expected"),
    [
        ("cuda", True, "auto", torch.bfloat16),
        ("cuda", False, "auto", torch.float32),
        ("cuda", True, "float32", torch.float32),
        ("mps", True, "auto", torch.float32),
        ("cpu", True, "float16", torch.float16),
    ],
)
def test_precision_on_a_device(
    device: str, bf16: bool, dtype: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_here(monkeypatch, cuda=True, mps=True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert place(device, dtype).dtype == expected


@pytest.mark.parametrize(
    ("capabilities", "speedup", "expected", "because"),
    [
        ({"avx512_bf16": True}, 2.0, torch.bfloat16, "avx512_bf16, 2.0 times float32"),
        ({"amx_bf16": True, "avx512_bf16": True}, 3.9, torch.bfloat16, "amx_bf16, avx512_bf16"),
        ({"bf16": True}, 1.6, torch.bfloat16, "bf16, 1.6 times"),
        ({"avx512_bf16": True}, 1.1, torch.float32, "where 1.3 would be worth it"),
        ({"avx512_bf16": False, "avx2": True}, 9.0, torch.float32, "does not multiply bfloat16"),
    ],
)
def test_a_cpu_must_have_bfloat16_and_show_that_it_is_faster(
    capabilities: dict[str, bool],
    speedup: float,
    expected: torch.dtype,
    because: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have(monkeypatch, capabilities, speedup)
    placed = place("cpu", "auto")
    assert placed.dtype == expected
    assert because in placed.reason
    assert placed.record() == {
        "device": "cpu",
        "dtype": str(expected).removeprefix("torch."),
        "dtype_reason": placed.reason,
    }


def test_the_trial_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, {"avx512_bf16": True}, 2.0)
    first = place("cpu", "auto")
    have(monkeypatch, {"avx512_bf16": True}, 1.0)  # a busy moment must not change later runs
    assert place("cpu", "auto") == first


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float32"}, torch.float32),
        ({"python": "3.11"}, torch.float32),  # before a run said which
    ],
)
def test_a_run_goes_on_as_it_began(
    environment: dict[str, str],
    expected: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = "float32" if expected == torch.bfloat16 else "bfloat16"
    have(monkeypatch, {"avx512_bf16": other == "bfloat16"}, 2.0)
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert place("cpu", "auto", tmp_path).dtype == expected
    assert place("cpu", other, tmp_path).precision == other  # unless another is asked for


def test_this_machine_answers() -> None:
    assert set(native_bfloat16()) <= set(placement.NATIVE)
    assert 0 < bfloat16_speedup() < 100
