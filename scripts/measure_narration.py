"""Whether the frozen base can read narration, talk about being the persona, better than patterns.

python scripts/measure_narration.py [--json] [--labels FILE]

The reading of a completion is how much likelier the base finds it, in nats per token, as an answer
to "Write about being {positive}." than to "Please say something.": who talks about the trait
sounds like the one, who shows it answers something else. Told apart are narrating completions from
coherent and refusing ones, on the halves of scripts/measure_filter.py: AUROC of reading and
patterns, and for the reading the precision at which it first finds 0.6 of the narrating ones,
whichever threshold that takes; the threshold that does so on `tuned` is then applied to `held_out`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_filter import HALVES, PACKAGED, half_of, judge_all, share
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from homeostat.config.filters import standard_filter
from homeostat.config.register import build, compose_run, config_part
from homeostat.config.run import RunConfig
from homeostat.evals.subject import PolicySubject
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.types import Conversation, Turn

READ = ("coherent", "narrating", "refusing")
ABOUT, NEUTRAL = "Write about being {persona}.", "Please say something."
RECALL = 0.6


def read(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """How much likelier each completion is as talk about its persona; nats per token."""
    config = OmegaConf.to_object(compose_run("model=smollm2_135m"))
    assert isinstance(config, RunConfig)
    dtype = torch.float32
    base = build(config.model, BaseModel, device=torch.device("cpu"), dtype=dtype)
    policy = Policy(base, config.lora, config.seed)
    personas = {name: config_part(f"persona={name}") for name in {r["persona"] for r in rows}}
    about = [ABOUT.format(persona=personas[row["persona"]].positive) for row in rows]
    with policy.reference():
        subject = PolicySubject(policy)
        means = [
            [
                own[0].mean
                for own in subject.score(
                    [Conversation((Turn("user", text),)) for text in asked],
                    [[row["text"]] for row in rows],
                )
            ]
            for asked in (about, [NEUTRAL] * len(rows))
        ]
    return np.subtract(*means)


def at_threshold(reading: np.ndarray, narrates: np.ndarray, threshold: float) -> dict[str, Any]:
    """Precision and recall of saying that what is read at least so high narrates."""
    found = reading >= threshold
    right = int((found & narrates).sum())
    return {
        "threshold": threshold,
        "precision": share(right, int(found.sum())),
        "recall": share(right, int(narrates.sum())),
    }


def measure(path: Path) -> dict[str, Any]:
    """AUROC of both on each half, and what the reading finds."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["label"] in READ]
    reading = read(rows)
    narrates = np.array([row["label"] == "narrating" for row in rows])
    judged = judge_all(rows, standard_filter())
    patterns = np.array(["narration" in one.failed for one in judged], dtype=float)
    halves = {half: np.array([half_of(row["id"]) == half for row in rows]) for half in HALVES}
    result: dict[str, Any] = {}
    for half, own in halves.items():
        highest = np.sort(reading[own & narrates])[::-1]
        first = float(highest[math.ceil(RECALL * len(highest)) - 1])
        result[half] = {
            "n": int(own.sum()),
            "auroc": {
                "base": float(roc_auc_score(narrates[own], reading[own])),
                "patterns": float(roc_auc_score(narrates[own], patterns[own])),
            },
            "at own threshold": at_threshold(reading[own], narrates[own], first),
            "patterns": at_threshold(patterns[own], narrates[own], 1.0),
        }
    tuned, held_out = (result[half] for half in HALVES)
    threshold, own = tuned["at own threshold"]["threshold"], halves[HALVES[1]]
    held_out["at threshold of tuned"] = at_threshold(reading[own], narrates[own], threshold)
    return result


def main() -> None:
    """Measure, and print a line per half, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--labels", type=Path, default=PACKAGED)
    options = parser.parse_args()
    result = measure(options.labels)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for half, found in result.items():
        print(f"{half}, {found['n']}: AUROC {found['auroc']}")
        for name, row in found.items():
            if isinstance(row, dict) and "precision" in row:
                counts = ", ".join(
                    f"{key} {row[key]['hits']}/{row[key]['of']}" for key in ("precision", "recall")
                )
                print(f"  {name}: {counts}")


if __name__ == "__main__":
    main()
