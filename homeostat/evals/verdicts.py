"""What a run of steer and heal has shown: five questions, each with figure, threshold, interval.

A broken model, one below the coherence floor, answers none of them with yes, and neither does a
model that did not move: floors are checked before anything is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import scipy

from homeostat.config.steering import StagesConfig
from homeostat.evals.stages import compare_arms, stage_figures
from homeostat.evals.stats import compare_paired

YES, NO, UNKNOWN = "yes", "no", "cannot tell"
RETAIN = 0.5  # of the steered movement that healing must keep
EQUAL_COHERENCE = 0.1  # how much less coherent than the prompted base still counts as equal
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """One answer; ``threshold`` is what ``figure`` was held against."""

    id: str
    question: str
    answer: str
    figure: float | None
    ci95: tuple[float, float] | None
    threshold: float | None
    why: str


def run_verdicts(
    arms: Mapping[tuple[int, str], Rows],
    filtered: Sequence[tuple[int, int]],
    min_kept_share: float,
    config: StagesConfig,
) -> list[Verdict]:
    """All verdicts.

    Args:
        arms: Rows of `Stages.measure` by round and stage; base and prompted have round 0.
        filtered: For each round: kept, completions.
        min_kept_share: Share of the completions that a round cannot do without.
        config: Floor and resampling.
    """
    rounds = sorted({n for n, stage in arms if stage == "healed"})
    q0 = _can_filter(filtered, min_kept_share)
    if not rounds:
        why = "no round was healed"
        return [q0, *(Verdict(i, q, UNKNOWN, None, None, None, why) for i, q in QUESTIONS)]
    last = rounds[-1]
    return [
        q0,
        _heals(arms, last, config),
        _holds(arms, rounds, config),
        _moves(arms, rounds, config),
        _beats_prompting(arms, last, config),
    ]


QUESTIONS = (
    (
        "Q1",
        "Is the healed model more coherent than the steering it came from, and keeps the trait?",
    ),
    ("Q2", "Does coherence hold over the rounds?"),
    ("Q3", "Does the trait move in one direction?"),
    ("beats prompting", "Does it beat the prompted persona at equal coherence?"),
)


def _can_filter(filtered: Sequence[tuple[int, int]], least: float) -> Verdict:
    question = "Q0", "Does enough of what is steered pass the filter?"
    kept, total = filtered[-1] if filtered else (0, 0)
    if not total:
        return Verdict(*question, UNKNOWN, None, None, least, "nothing was sampled")
    interval = scipy.stats.binomtest(kept, total).proportion_ci(method="wilson")
    answer = YES if interval.low >= least else NO if interval.high < least else UNKNOWN
    why = f"{kept} of {total} completions of the last round passed"
    ends = float(interval.low), float(interval.high)
    return Verdict(*question, answer, kept / total, ends, least, why)


def _heals(arms: Mapping[tuple[int, str], Rows], last: int, config: StagesConfig) -> Verdict:
    base, steered, healed = arms[0, "base"], arms.get((last, "steered")), arms[last, "healed"]
    if steered is None:
        why = "no steered student was measured"
        return Verdict(*QUESTIONS[0], UNKNOWN, None, None, 0.0, why)
    gain = compare_arms(steered, healed, config.bootstrap_samples)["log_perplexity"]
    moved_s = compare_arms(base, steered, config.bootstrap_samples)["trait_nats"]
    moved_h = compare_arms(base, healed, config.bootstrap_samples)["trait_nats"]
    flags = _flags(base, healed, config)
    retain = None
    if moved_s.diff is not None and moved_h.diff is not None and moved_s.diff > 0:
        retain = moved_h.diff / moved_s.diff
    heals = gain.ci95 is not None and gain.ci95[1] < 0
    keeps = retain is not None and retain >= RETAIN and _is_positive(moved_h.ci95)
    answer = NO if flags or not (heals and keeps) else YES
    kept = "no movement to keep" if retain is None else f"{retain:.2f} of the movement is kept"
    why = flags or (
        f"log perplexity changes by {_show(gain.diff)} from steered to healed in round {last}; "
        f"{kept} (at least {RETAIN:g} is asked)"
    )
    return Verdict(*QUESTIONS[0], answer, gain.diff, gain.ci95, 0.0, why)


def _holds(
    arms: Mapping[tuple[int, str], Rows], rounds: Sequence[int], config: StagesConfig
) -> Verdict:
    base = arms[0, "base"]
    shares = [stage_figures(arms[n, "healed"])["coherence"] or 0.0 for n in rounds]
    change = compare_arms(base, arms[rounds[-1], "healed"], config.bootstrap_samples)["coherence"]
    flags = _unmoved(base, arms[rounds[-1], "healed"], config)
    broken = min(shares) < config.coherence_floor
    holds = change.ci95 is not None and change.ci95[0] >= -EQUAL_COHERENCE
    falls = change.ci95 is not None and change.ci95[1] < -EQUAL_COHERENCE
    answer = NO if broken or flags or falls else YES if holds else UNKNOWN
    listed = ", ".join(f"{share:.2f}" for share in shares)
    why = flags or f"coherent share of the healed model by round: {listed}"
    return Verdict(*QUESTIONS[1], answer, change.diff, change.ci95, -EQUAL_COHERENCE, why)


def _moves(
    arms: Mapping[tuple[int, str], Rows], rounds: Sequence[int], config: StagesConfig
) -> Verdict:
    base = arms[0, "base"]
    moved = [
        compare_arms(base, arms[n, "healed"], config.bootstrap_samples)["trait_nats"]
        for n in rounds
    ]
    flags = _flags(base, arms[rounds[-1], "healed"], config)
    steps = [
        compare_arms(arms[a, "healed"], arms[b, "healed"], config.bootstrap_samples)["trait_nats"]
        for a, b in pairwise(rounds)
    ]
    back = [step for step in steps if step.ci95 is not None and step.ci95[1] < 0]
    answer = NO if flags or back or not _is_positive(moved[-1].ci95) else YES
    listed = ", ".join(_show(estimate.diff) for estimate in moved)
    why = flags or f"movement from the base by round, nats per token: {listed}"
    return Verdict(*QUESTIONS[2], answer, moved[-1].diff, moved[-1].ci95, 0.0, why)


def _beats_prompting(
    arms: Mapping[tuple[int, str], Rows], last: int, config: StagesConfig
) -> Verdict:
    base, prompted, healed = arms[0, "base"], arms[0, "prompted"], arms[last, "healed"]
    estimates = compare_arms(prompted, healed, config.bootstrap_samples)
    trait, coherence = estimates["trait_nats"], estimates["coherence"]
    flags = _flags(base, healed, config)
    equal = coherence.ci95 is not None and coherence.ci95[0] >= -EQUAL_COHERENCE
    answer = UNKNOWN
    if flags or (trait.ci95 is not None and trait.ci95[1] < 0):
        answer = NO
    elif _is_positive(trait.ci95):
        answer = YES if equal else NO
    why = flags or (
        f"healed less prompted: trait {_show(trait.diff)}, coherent share {_show(coherence.diff)}"
    )
    return Verdict(*QUESTIONS[3], answer, trait.diff, trait.ci95, 0.0, why)


def _flags(base: Rows, healed: Rows, config: StagesConfig) -> str:
    """Why nothing can count as a success; empty if it can."""
    share = stage_figures(healed)["coherence"] or 0.0
    if share < config.coherence_floor:
        return (
            f"the model is broken: {share:.2f} of its replies are coherent, the floor is "
            f"{config.coherence_floor:g}"
        )
    return _unmoved(base, healed, config)


def _unmoved(base: Rows, healed: Rows, config: StagesConfig) -> str:
    pairs = zip(base, healed, strict=True)
    trait_pairs = [(b["trait_nats"], h["trait_nats"]) for b, h in pairs if b["kind"] == "trait"]
    estimate = compare_paired(
        [b for b, _ in trait_pairs], [h for _, h in trait_pairs], config.bootstrap_samples
    )
    if estimate.ci95 is not None and estimate.ci95[0] <= 0 <= estimate.ci95[1]:
        return f"the model did not move: trait {_show(estimate.diff)}, its interval covers 0"
    return ""


def _is_positive(ci95: tuple[float, float] | None) -> bool:
    return ci95 is not None and ci95[0] > 0


def _show(value: float | None) -> str:
    return "missing" if value is None else f"{value:+.3f}"
