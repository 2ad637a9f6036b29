"""Measures what bfloat16 weights change, beside float32, on the embedded model.

python scripts/measure_precision.py [--json] [--replies 200] [--groups 40]

One set of conversations, played by the base in float32 with the default bots at temperature 0.7, is
read under both. Nothing but the frozen weights differs: adapters, optimisers, log-probabilities and
statistics are float32 in both.

    signals   difference of every signal of every reply: median, 95th percentile, largest, in the
              signal's own unit, beside the automatic tolerance that the reward divides by.
              The affects are each precision's own probes, fitted on its own hidden states
    probes    AUROC of each affect on the corpus's held-out groups, in both
    step 0    a fresh adapter against the reference: the largest KL of a token, nats; and the mean
              ratio of one pass to another of the same tokens in other batches, with its spread
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from homeostat.config.register import build, compose_run
from homeostat.config.run import RunConfig
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.rollout.episodes import calibration_seeds, play
from homeostat.signals.calibration import Calibration, calibrate
from homeostat.signals.probing.perception import Perception, obtain_perception
from homeostat.signals.reader import SignalReader
from homeostat.signals.trace import trace
from homeostat.types import Bots, Episode, Reading

DTYPES = ("float32", "bfloat16")


def compose(options: argparse.Namespace) -> RunConfig:
    """The default run's config."""
    groups = f"signals.author_groups={options.groups}"
    config = OmegaConf.to_object(compose_run("model=smollm2_135m", groups))
    assert isinstance(config, RunConfig)
    return config


def load(config: RunConfig, dtype: str) -> Policy:
    """The embedded model with a fresh adapter."""
    device = torch.device("cpu")
    base = build(config.model, BaseModel, device=device, dtype=getattr(torch, dtype))
    return Policy(base, config.lora, config.seed)


def conversations(policy: Policy, config: RunConfig, replies: int) -> list[Episode]:
    """Episodes of the base, with at least so many replies in all."""
    seeds = calibration_seeds(-(-replies // config.rollout.turns))
    bots = build(config.bot, Bots)
    with policy.reference():
        return play(policy, bots, seeds, config.rollout, config.signals.calibration_temperature)


def read(
    policy: Policy, config: RunConfig, episodes: Sequence[Episode]
) -> tuple[Perception, Calibration, list[Reading]]:
    """What one precision makes of the conversations, with probes of its own."""
    perception = obtain_perception(policy, config.signals)
    reader = SignalReader(policy, config.signals, perception.probes)
    calibration, readings = calibrate(reader, episodes)
    return perception, calibration, readings


def step_zero(policy: Policy, episodes: Sequence[Episode]) -> dict[str, float]:
    """How far a policy that has learnt nothing is from its reference, and from itself."""
    talks = [episode.conversation for episode in episodes]
    first, again = trace(policy, talks), trace(policy, talks, max_tokens=1500)
    pairs = zip(first, again, strict=True)
    ratio = np.exp(np.concatenate([b.logprob_R - a.logprob_R for a, b in pairs]))
    return {
        "largest_kl": float(max(one.kl_R.max() for one in first)),
        "ratio_mean": float(ratio.mean()),
        "ratio_p95_from_1": float(np.quantile(np.abs(ratio - 1), 0.95)),
        "ratio_largest_from_1": float(np.abs(ratio - 1).max()),
    }


def differences(
    exact: Sequence[Reading], rounded: Sequence[Reading], tolerances: Calibration
) -> list[dict[str, Any]]:
    """One row for each signal; a reply that lacks it in either precision is left out."""
    rows = []
    for name in exact[0].signals.names:
        a, b = (
            np.concatenate([reading.signals.column(name) for reading in readings])
            for readings in (exact, rounded)
        )
        off = np.abs(b - a)
        off = off[np.isfinite(off)]
        rows.append(
            {
                "signal": name,
                "n": len(off),
                "median": float(np.median(off)) if len(off) else None,
                "p95": float(np.quantile(off, 0.95)) if len(off) else None,
                "largest": float(off.max()) if len(off) else None,
                "tolerance": tolerances.spread(name),
            }
        )
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-ready."""
    config = compose(options)
    made: dict[str, Any] = {}
    episodes: list[Episode] = []
    for dtype in DTYPES:
        policy = load(config, dtype)
        episodes = episodes or conversations(policy, config, options.replies)
        made[dtype] = (*read(policy, config, episodes), step_zero(policy, episodes[:16]))
        del policy
    (exact, tolerances, a, zero), (rounded, _, b, zero_rounded) = (made[d] for d in DTYPES)
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "replies": sum(len(reading.signals.turns) for reading in a),
        "author_groups": options.groups,
        "signals": differences(a, b, tolerances),
        "probe_auroc": {
            name: [exact.reports[name].auroc, rounded.reports[name].auroc] for name in exact.reports
        },
        "step_0": {"float32": zero, "bfloat16": zero_rounded},
    }


def table(results: dict[str, Any]) -> list[str]:
    """Lines: every signal's difference beside its tolerance, then probes and step 0."""
    lines = [f"{results['replies']} replies", f"{'':<20}{'median':>10}{'95%':>10}{'largest':>10}"]
    lines[-1] += f"{'tolerance':>11}"
    for row in results["signals"]:
        figures = "".join(
            f"{row[key]:>10.4f}" if row[key] is not None else f"{'—':>10}"
            for key in ("median", "p95", "largest")
        )
        lines.append(f"{row['signal']:<20}{figures}{row['tolerance']:>11.4f}")
    for name, (exact, rounded) in results["probe_auroc"].items():
        lines.append(f"AUROC of {name}: float32 {exact:.3f}, bfloat16 {rounded:.3f}")
    for dtype, zero in results["step_0"].items():
        shown = ", ".join(f"{key} {value:.2g}" for key, value in zero.items())
        lines.append(f"step 0, {dtype}: {shown}")
    return lines


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--replies", type=int, default=200, help="that are read under both")
    parser.add_argument("--groups", type=int, default=40, help="author groups of the probe corpus")
    options = parser.parse_args()
    results = measure(options)
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
