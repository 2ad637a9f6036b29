"""``homeostat check``: what this machine can do, and which preset fits it. No torch import."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from homeostat.files import cache_root
from homeostat.report.plain import visible

# What the processor calls the instructions that multiply bfloat16, on x86 and on ARM.
NATIVE = ("amx_bf16", "avx512_bf16", "bf16", "svebf16")
# What needs an extra, and the module that it brings.
EXTRAS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit": "hydra_plugins.hydra_submitit_launcher",
    "ray": "ray",
    "optuna": "optuna",
    "trackio": "trackio",
    "tensorboard": "tensorboard",
    "inspect": "inspect_ai",
    "endpoint": "openai",
    "quant": "bitsandbytes",
}
GPU12_MB = 11_000  # that a card sold as 12 GB reports at least
CPU_GB = 4  # of memory that scale=cpu takes with the default model


def check(console: Console) -> None:
    """Print what there is, a line each, and the preset that fits."""
    gpus = gpus_of(_nvidia_smi())
    memory = psutil.virtual_memory()
    table = Table("what", "here", show_header=False, box=None, pad_edge=False)
    table.columns[1].overflow = "fold"
    for what, here in {
        "processor": f"{usable_cores()} cores for this process, {platform.machine()}",
        "bfloat16": ", ".join(native_bfloat16(_flags())) or "not native; dtype=auto is float32",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "GPU": "; ".join(f"{name}, {size} MB" for name, size in gpus)
        or "none that nvidia-smi sees",
        "cache": f"{size_of(cache_root()) / 1e9:.2f} GB in {cache_root()}",
        "models at hand": ", ".join(models_at_hand())
        or "none yet; the default one is fetched once",
        "extras": ", ".join(name for name, module in EXTRAS.items() if is_there(module)) or "none",
        "preset": preset(gpus, memory.total / 1e9),
    }.items():
        table.add_row(what, Text(visible(here)))
    console.print(table)


def usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def native_bfloat16(flags: str) -> list[str]:
    """Which of the processor's flags say that it multiplies bfloat16."""
    return [flag for flag in NATIVE if flag in flags.split()]


def gpus_of(listed: str) -> list[tuple[str, int]]:
    """Name and memory in MB of every line that nvidia-smi gives; () if it says something else."""
    rows = [line.rpartition(",") for line in listed.splitlines()]
    return [(name.strip(), int(size)) for name, _, size in rows if size.strip().isdecimal()]


def preset(gpus: list[tuple[str, int]], memory_gb: float) -> str:
    """The scale that fits, and a model."""
    if any(size >= GPU12_MB for _, size in gpus):
        return "homeostat model=qwen2.5_0.5b scale=gpu12"
    if memory_gb >= CPU_GB:
        return "homeostat (scale=cpu, the default model)"
    return f"homeostat scale=smoke; scale=cpu takes up to {CPU_GB} GB of memory"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 for one that is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def models_at_hand() -> list[str]:
    """Models that are in homeostat's own cache, and hub ids that are in the hub's."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folders = sorted(hub.glob("models--*")) if hub.is_dir() else []
    built = (path for path in (cache_root() / "models").glob("[!.]*-*") if path.is_dir())
    return sorted(path.name.rpartition("-")[0] for path in built) + [
        folder.name.removeprefix("models--").replace("--", "/") for folder in folders
    ]


def is_there(module: str) -> bool:
    """Whether a module could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _flags() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _nvidia_smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return ""
    return done.stdout
