"""Times one round of steer and heal, batched, beside the same work one item at a time.

python scripts/bench_steer_heal.py [--json] [--repeats 3]

The embedded model in float32: a vector from 32 contexts, 32 steered completions of 48 tokens at
dose 4, the filter's reading under the base, and healing on 30 of them for 2 epochs with the rmse
barrier. Batched is what a run does. One at a time means batches of one row everywhere: prompts,
sampling, reading, and minibatches of one completion in healing, so that it makes four times as many
optimiser steps on as many completions. Both run in turn, in alternating order, in one process after
one round to warm up; a round gives one ratio per part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from homeostat.config.register import build, config_part
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.rollout.replies import Sampling, base_nll, reply_ids, with_sampled_replies
from homeostat.runs.summary import peak_rss_mb
from homeostat.steering.completions import Completion
from homeostat.steering.filters import Steered, failed_gates
from homeostat.steering.heal import Heal, HealRound
from homeostat.steering.vectors import (
    as_message,
    as_persona,
    last_token_residual,
    make_vector,
    read_contexts,
    spread,
)

CONTEXTS, COMPLETIONS, HEALED, DOSE, TOKENS = 32, 32, 30, 4.0, 48
BAND = (14, 15, 16)
MIN_ROUND, MIN_GENERATE = 3.0, 6.0
PARTS = ("vector", "generate", "filter", "heal")


def load() -> tuple[BaseModel, Any, Any]:
    """The embedded model, a persona and the filter's defaults."""
    model = config_part("model=smollm2_135m")
    base = build(model, BaseModel, device=torch.device("cpu"), dtype=torch.float32)
    return (
        base,
        config_part("persona=care_over_authority"),
        config_part("trainer=steer_heal", "filter"),
    )


def one_round(
    policy: Policy, persona: Any, gates: Any, single: bool, seed: int
) -> dict[str, float]:
    """Seconds of every part of one round."""
    seconds: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[part] = time.perf_counter() - start
        return result

    contexts = spread(read_contexts(None), seed=0)
    sides = [
        as_persona(persona, side, c.text)
        for side in ("positive", "negative")
        for c in contexts[:CONTEXTS]
    ]
    parts = [[side] for side in sides] if single else [sides]

    def read_vector() -> Any:
        of_parts = [last_token_residual(policy, part, BAND) for part in parts]
        states = {layer: torch.cat([one[layer] for one in of_parts]) for layer in BAND}
        differences = {layer: h[:CONTEXTS] - h[CONTEXTS:] for layer, h in states.items()}
        scale = {layer: float(h.norm(dim=-1).mean()) for layer, h in states.items()}
        return make_vector(
            differences, scale, config_part("trainer=steer_heal", "vector").kind, persona.name, seed
        )

    vector = timed("vector", read_vector)
    asked = [as_message(c.text) for c in contexts[CONTEXTS : CONTEXTS + COMPLETIONS]]
    sampling = Sampling(TOKENS, 0.7, (seed,))
    groups = [[n] for n in range(COMPLETIONS)] if single else [list(range(COMPLETIONS))]

    def generate() -> list[Any]:
        return [
            talk
            for rows in groups
            for talk in with_sampled_replies(
                policy,
                [asked[n] for n in rows],
                sampling,
                vector.steering(DOSE, config_part("trainer=steer_heal", "dose")),
                first=rows[0],
            )
        ]

    talks = timed("generate", generate)

    def read() -> int:
        nll = [nll_R for rows in groups for nll_R in base_nll(policy, [talks[n] for n in rows])]
        steered = [
            Steered(talk.turns[-1].text, reply_ids(talk), nll_R, DOSE)
            for talk, nll_R in zip(talks, nll, strict=True)
        ]
        return sum(not failed_gates(completion, gates, 10.0, []) for completion in steered)

    timed("filter", read)
    completions = [
        Completion(tuple(policy.encode(replace(t, turns=t.turns[:-1])).ids), reply_ids(t))
        for t in talks[:HEALED]
    ]
    minibatch = 1 if single else 4
    config = config_part("trainer=steer_heal", "heal", validation=0.0, minibatch=minibatch)
    barrier = config_part("trainer=steer_heal", "barrier", aggregate="rmse", tau=0.5)
    heal = Heal(config, barrier, policy=policy, round=HealRound(0, seed, 3e-4, 0.5))
    timed("heal", lambda: heal.run(completions))
    return seconds | {"round": sum(seconds.values())}


def main() -> None:
    """Alternate both and print the medians of their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    base, persona, gates = load()
    policy = Policy(base, config_part("lora", layers=[0.2, 0.8]), seed=0)
    seen: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    one_round(policy, persona, gates, single=False, seed=99)
    for number in range(arguments.repeats):
        for single in (False, True) if number % 2 else (True, False):
            print(f"round {number + 1}, {'one' if single else 'batch'}", file=sys.stderr)
            seen[single].append(one_round(policy, persona, gates, single, seed=number))
    rows = {}
    for part in (*PARTS, "round"):
        ratios = [
            one[part] / batch[part] for one, batch in zip(seen[True], seen[False], strict=True)
        ]
        rows[part] = {
            "batched_s": statistics.median(r[part] for r in seen[False]),
            "one_at_a_time_s": statistics.median(r[part] for r in seen[True]),
            "speedup": statistics.median(ratios),
            "speedup_min": min(ratios),
            "speedup_max": max(ratios),
        }
    results = {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "repeats": arguments.repeats,
        "peak_rss_mb": peak_rss_mb(),
        "parts": rows,
        "met": {
            "round": rows["round"]["speedup"] >= MIN_ROUND,
            "generate": rows["generate"]["speedup"] >= MIN_GENERATE,
        },
    }
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{'part':<10}{'batched':>10}{'one by one':>12}{'faster by':>11}  range")
    for part, row in rows.items():
        print(
            f"{part:<10}{row['batched_s']:>9.1f}s{row['one_at_a_time_s']:>11.1f}s"
            f"{row['speedup']:>11.2f}  {row['speedup_min']:.2f} to {row['speedup_max']:.2f}"
        )


if __name__ == "__main__":
    main()
