"""Verdicts on made-up arms: honest success, collapse, no movement, prompting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from configs import stages_config

from homeostat.evals.stages import compare_arms, stage_figures, trait_per_nat
from homeostat.evals.verdicts import NO, UNKNOWN, YES, run_verdicts

CONFIG = stages_config(bootstrap_samples=500, coherence_floor=0.5)
N = 48


def arm(
    trait: float, coherent: float = 1.0, perplexity: float = 7.0, kl: float = 0.2, seed: int = 0
) -> list[dict[str, Any]]:
    """Items of one arm; the noise of an item is shared by all arms, that of an arm is small."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    rows: list[dict[str, Any]] = [
        {
            "kind": "trait",
            "item": f"pair-{i}",
            "trait_nats": trait + float(shared.normal()) + 0.01 * float(own.normal()),
        }
        for i in range(N)
    ]
    passing = round(coherent * N)
    return rows + [
        {
            "kind": "reply",
            "item": f"c-{i}",
            "coherent": float(i < passing),
            "base_perplexity": perplexity,
            "log_perplexity": float(np.log(perplexity)) + 0.05 * float(own.normal()),
            "kl_nats_per_token": kl,
            "repetition": 0.0,
            "narrates": 0.0,
            "tokens": 40,
        }
        for i in range(N)
    ]


def answers(arms: dict[tuple[int, str], list[dict[str, Any]]]) -> dict[str, str]:
    found = run_verdicts(arms, [(30, 32)], 0.25, CONFIG)
    return {verdict.id: verdict.answer for verdict in found}


def arms(**changed: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """A run that does everything right, with some arms changed (``healed_2``)."""
    made = {
        "base_0": arm(0.0),
        "prompted_0": arm(0.1, seed=1),
        "steered_1": arm(0.6, 0.8, 30, 1.5, seed=2),
        "healed_1": arm(0.4, 1.0, 9, 0.3, seed=3),
        "steered_2": arm(0.9, 0.8, 40, 1.5, seed=4),
        "healed_2": arm(0.7, 1.0, 9, 0.5, seed=5),
    } | changed
    return {(int(k[-1]), k[:-2]): rows for k, rows in made.items()}


def test_a_run_that_does_everything_right() -> None:
    assert set(answers(arms()).values()) == {YES}


def test_a_collapsed_model_never_succeeds() -> None:
    """However far its trait went."""
    broken = arm(5.0, coherent=0.1, perplexity=8.0, kl=3.0, seed=6)
    found = answers(arms(healed_2=broken))
    assert [found[name] for name in ("Q1", "Q2", "Q3", "beats prompting")] == [NO] * 4


def test_a_collapsed_model_of_low_perplexity_never_succeeds() -> None:
    """A loop is what the base finds most likely of all."""
    broken = arm(5.0, coherent=0.0, perplexity=1.1, seed=6)
    assert YES not in {a for name, a in answers(arms(healed_2=broken)).items() if name != "Q0"}


def test_an_unmoved_model_never_succeeds() -> None:
    unmoved = arm(0.0, seed=7)
    found = answers(arms(healed_1=unmoved, healed_2=arm(0.0, seed=8)))
    assert YES not in {a for name, a in found.items() if name != "Q0"}


def test_a_model_that_went_the_wrong_way_does_not_move_in_one_direction() -> None:
    assert answers(arms(healed_2=arm(-0.5, seed=9)))["Q3"] == NO
    assert answers(arms(healed_2=arm(0.2, seed=9)))["Q3"] == NO, "back from 0.4"


def test_healing_that_gives_up_the_trait_is_no_healing() -> None:
    assert answers(arms(healed_2=arm(0.05, 1.0, 7.0, seed=10)))["Q1"] == NO


def test_prompting_that_goes_as_far_is_not_beaten() -> None:
    found = answers(arms(prompted_0=arm(1.5, seed=11)))
    assert found["beats prompting"] == NO
    level = answers(arms(prompted_0=arm(0.7, seed=12), healed_2=arm(0.7, seed=13)))
    assert level["beats prompting"] in (UNKNOWN, NO, YES)


def test_going_further_than_prompting_by_losing_coherence_is_no_win() -> None:
    found = answers(arms(healed_2=arm(2.0, coherent=0.6, seed=14)))
    assert found["beats prompting"] == NO
    assert found["Q2"] == NO


@pytest.mark.parametrize(
    ("kept", "expected"), [((30, 32), YES), ((1, 32), NO), ((9, 32), UNKNOWN), ((0, 0), UNKNOWN)]
)
def test_the_filters_verdict_needs_its_interval(kept: tuple[int, int], expected: str) -> None:
    found = run_verdicts(arms(), [kept], 0.25, CONFIG)[0]
    assert (found.id, found.answer) == ("Q0", expected)


def test_without_a_healed_round_nothing_is_claimed() -> None:
    only = {key: rows for key, rows in arms().items() if key[1] != "healed"}
    found = run_verdicts(only, [(2, 32)], 0.25, CONFIG)
    assert [verdict.answer for verdict in found] == [NO] + [UNKNOWN] * 4


def test_aggregates_by_hand() -> None:
    rows = arm(0.5, coherent=0.5, perplexity=8.0, kl=0.25)
    found = stage_figures(rows)
    assert found["coherence"] == 0.5
    assert found["median_perplexity"] == 8.0
    assert found["kl_nats_per_token"] == 0.25
    assert found["trait_nats"] == pytest.approx(np.mean([r["trait_nats"] for r in rows[:N]]))
    assert stage_figures([])["coherence"] is None


def test_differences_are_after_less_before() -> None:
    found = compare_arms(arm(0.0), arm(1.0, coherent=0.75), samples=200)
    assert found["trait_nats"].diff == pytest.approx(1, abs=0.02)
    assert found["coherence"].diff == pytest.approx(-0.25)
    assert found["coherence"].n == N


def test_movement_per_nat() -> None:
    found = trait_per_nat(arm(0.0), arm(1.0, kl=0.5), samples=200)
    assert found.diff == pytest.approx(2, abs=0.05)
    assert found.ci95 is not None
    assert found.ci95[0] <= found.diff <= found.ci95[1]
    assert trait_per_nat(arm(0.0), arm(1.0, kl=0.0), samples=200).diff is None
