"""Where a model computes, and in which number format."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homeostat.config.run import DTYPES
from homeostat.errors import HomeostatError
from homeostat.models.cache import remembered

# What torch calls the instructions that multiply bfloat16, on x86 and on ARM.
NATIVE = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
WORTH = 1.3  # times float32's speed; below it the rounding buys too little
TRIAL = (256, 576, 1536)  # rows, inputs, outputs: some milliseconds
TRIALS = 7


@dataclass(frozen=True)
class Placement:
    """Where a model is, the number format of its frozen weights, and why it is this one.

    Adapters, optimisers, log-probabilities and statistics are float32 whatever it is.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def precision(self) -> str:
        """The number format as the config calls it."""
        return str(self.dtype).removeprefix("torch.")

    def record(self) -> dict[str, str]:
        """What environment.json says of it."""
        return {"device": self.device.type, "dtype": self.precision, "dtype_reason": self.reason}

    def __str__(self) -> str:
        return f"{self.device.type}, {self.precision}: {self.reason}"


def place(device_name: str, dtype_name: str, folder: Path | None = None) -> Placement:
    """What ``device`` and ``dtype`` of a config stand for here.

    ``auto`` is bfloat16 where the device multiplies it natively, else float32. A CPU must say that
    it does, and show it in a timed product of matrices.

    Args:
        device_name: ``auto`` or a kind of device.
        dtype_name: ``auto`` or a number format.
        folder: Of a run that goes on: on a CPU ``auto`` is then what it began with.

    Raises:
        HomeostatError: The device is not on this machine.
    """
    device = resolve_device(device_name)
    if dtype_name != "auto":
        return Placement(device, getattr(torch, dtype_name), "as asked for")
    if device.type == "cuda":
        has_it = torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if has_it else torch.float32
        return Placement(device, dtype, f"this GPU has {'it' if has_it else 'no bfloat16'}")
    if device.type == "cpu":
        began = None if folder is None else _began_with(folder / "environment.json")
        return Placement(device, *(_cpu_precision() if began is None else began))
    return Placement(device, torch.float32, f"the default on {device.type}")


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` stands for; ``auto`` prefers CUDA, then MPS.

    Raises:
        HomeostatError: The device is not on this machine.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if available[d]))
    if not available[name]:
        here = ", ".join(d for d, there in available.items() if there)
        raise HomeostatError(f"device={name} is not on this machine; here are: {here} (or auto).")
    return torch.device(name)


def _began_with(path: Path) -> tuple[torch.dtype, str] | None:
    """The number format in an environment.json; None where it cannot be read."""
    try:
        # Runs that do not say it were made when auto meant float32 on every CPU.
        name = json.loads(path.read_text(encoding="utf-8")).get("dtype", "float32")
    except (OSError, ValueError, AttributeError):
        return None
    return (getattr(torch, name), "as the run began") if name in DTYPES[1:] else None


def _cpu_precision() -> tuple[torch.dtype, str]:
    native = native_bfloat16()
    if not native:
        return torch.float32, "this processor does not multiply bfloat16"
    where = [platform.node(), platform.machine(), native]  # a cache may serve several machines
    recipe = [*where, torch.__version__, torch.get_num_threads()]
    speedup = float(remembered("precision", recipe, bfloat16_speedup))
    measured = f"{', '.join(native)}, {speedup:.1f} times float32 in a trial"
    if speedup >= WORTH:
        return torch.bfloat16, measured
    return torch.float32, f"{measured}, where {WORTH:g} would be worth it"


def native_bfloat16() -> list[str]:
    """The processor's instructions that multiply bfloat16, by torch's names; empty without any."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    has: Mapping[str, Any] = {} if ask is None else ask()
    return [name for name in NATIVE if has.get(name)]


def bfloat16_speedup() -> float:
    """How many times faster a product of bfloat16 matrices is than one of float32, this moment.

    The fastest of several trials of each, in turn, since whatever else runs only slows one down.
    """
    rows, inputs, outputs = TRIAL
    fastest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(TRIALS):
        for dtype in fastest:
            x, w = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - began)
    return fastest[torch.float32] / fastest[torch.bfloat16]
