"""Golden runs: small runs of the tiny model, recorded once, that later code must repeat.

On a processor that rounds as the recording one did, files must be equal to the byte; elsewhere the
figures of metrics.jsonl and rounds.jsonl must be close, since a reply may come out otherwise.

    python tests/golden.py <folder of the runs>      records tests/data/golden.json anew
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

PLACE = Path(__file__).parent / "data" / "golden.json"
COMMON = ("scale=smoke", "tracker=none", "model=tiny_random", "dtype=float32")
# What passes the filter of a model that says nothing sensible: everything.
OPEN = tuple(
    f"trainer.filter.{gate}={limit}"
    for gate, limit in {
        "max_perplexity": "null",
        "min_perplexity": "null",
        "max_tail_perplexity": "null",
        "min_distinct": "null",
        "min_diversity": "null",
        "max_repetition": "null",
        "min_tokens": 1,
    }.items()
)
RUNS: dict[str, tuple[str, ...]] = {
    "ppo": ("trainer=ppo",),
    "grpo": ("trainer=grpo",),
    "dpo": ("trainer=dpo",),
    "none": ("trainer=none",),
    "ppo_lora": (
        "trainer=ppo",
        "trainer.critic=lora",
        "trainer.kl_estimator=k3",
        "trainer.kl.kind=pid",
        "reward.mode=reduction",
        "trainer.epochs=2",
    ),
    "steer_heal": (
        "trainer=steer_heal",
        "persona=love",
        *OPEN,
        "trainer.stages.coherence_floor=0",
        "trainer.stages.prompts=0",
        "trainer.dose.kind=iso_kl",
        "trainer.dose.backtracks=1",
    ),
}
# A run of one update that is prolonged to two.
RESUMED = ("trainer=ppo", "trainer.max_steps=1", "seed=5")
LISTS = ("metrics.jsonl", "rounds.jsonl")
KEPT = (
    *LISTS,
    "episodes.jsonl",
    "heal.jsonl",
    "evals/*.jsonl",
    "adapters/**/adapter_model.safetensors",
)


def rounding() -> str:
    """What tells processors and versions of torch that round alike from others."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(96, 96, generator=generator) for _ in range(2))
    product = left @ right
    parts = (product, product.softmax(-1), product.exp().sum(-1), torch.tanh(product))
    digest = hashlib.sha256(torch.__version__.encode())
    for part in parts:
        digest.update(part.numpy().tobytes())
    # Probes are fitted by scikit-learn, on another library's products than torch's.
    rows = np.random.default_rng(0).standard_normal((200, 32))
    fitted = LogisticRegression(max_iter=200).fit(rows, rows[:, 0] + rows[:, 1] ** 2 > 0.5)
    digest.update((rows @ rows.T).tobytes() + fitted.coef_.tobytes())
    return digest.hexdigest()


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run that must not change, by its path."""
    paths = sorted({path for pattern in KEPT for path in folder.glob(pattern)})
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def figures(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The numbers of every row of the lists that have them."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name in LISTS:
        path = folder / name
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        parsed = [json.loads(line) for line in lines if line]
        rows[name] = [{k: v for k, v in row.items() if isinstance(v, float)} for row in parsed]
    return rows


def record(runs: Path) -> dict[str, Any]:
    """What is kept of every run in a folder of runs."""
    names = (*RUNS, "resumed")
    kept = {n: {"files": files(runs / n), "figures": figures(runs / n)} for n in names}
    return {"rounding": rounding(), "runs": kept}


if __name__ == "__main__":
    torch.set_num_threads(1)
    PLACE.write_text(json.dumps(record(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
