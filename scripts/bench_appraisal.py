"""Times what the base is asked about the replies to users who have claimed something.

python scripts/bench_appraisal.py [--json] [--repeats 3] [--dtype auto]

Six users with a claim, eight replies each, and as many without one: the least of some repeats after
a warm-up. Another tree's code is timed by `PYTHONPATH=TREE python scripts/bench_appraisal.py`.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from omegaconf import OmegaConf

from homeostat.config.register import build, compose_run
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.models.placement import place
from homeostat.rollout.appraisal import appraise

USERS, REPLIES = 6, 8
SAID = "I am sure that {} is the largest prime there is, everybody says so. Do you not agree?"
REPLY = "Well, {} is not quite what you say, since the primes go on without an end, {} of them."


def exchanges(claimed: bool) -> list[tuple[str, str, tuple[str, str] | None]]:
    """What users say, what is replied, and what they have claimed."""
    truth = "there is no largest prime"
    return [
        (
            SAID.format(user),
            REPLY.format(user, reply),
            (f"{user} is the largest prime", truth) if claimed else None,
        )
        for user in range(USERS)
        for reply in range(REPLIES)
    ]


def main() -> None:
    """Time both kinds, and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto")
    options = parser.parse_args()
    config = OmegaConf.to_object(compose_run())
    dtype = place("cpu", options.dtype).dtype
    base = build(config.model, BaseModel, device=torch.device("cpu"), dtype=dtype)
    policy = Policy(base, config.lora, seed=0)
    seconds = {}
    for name, claimed in (("claimed", True), ("plain", False)):
        asked = exchanges(claimed)
        appraise(policy, asked)
        spent = []
        for _ in range(options.repeats):
            began = time.perf_counter()
            appraise(policy, asked)
            spent.append(time.perf_counter() - began)
        seconds[name] = min(spent)
    if options.json:
        print(json.dumps({"dtype": str(dtype), "replies": USERS * REPLIES, "seconds": seconds}))
        return
    for name, least in seconds.items():
        print(f"{name:<10}{least:6.2f} s for {USERS * REPLIES} replies")


if __name__ == "__main__":
    main()
