"""Bad values of steer and heal: one sentence with the value and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from configs import (
    barrier_config,
    dose_config,
    heal_config,
    stages_config,
    steer_heal_config,
    vector_config,
)

from homeostat.config.persona import PersonaConfig
from homeostat.config.register import CONF, config_part

PARTS = {
    "": steer_heal_config,
    "vector.": vector_config,
    "dose.": dose_config,
    "heal.": heal_config,
    "barrier.": barrier_config,
    "stages.": stages_config,
}
WRONG: list[tuple[str, Any, list[str]]] = [
    ("max_new_tokens", 0, ["above 0"]),
    ("temperature", 0.0, ["above 0"]),
    ("top_p", 0.0, ["above 0 and at most 1"]),
    ("top_p", 1.2, ["above 0 and at most 1"]),
    ("top_k", 0, ["at least 1", "null"]),
    ("asked", "both", ["contexts, persona"]),
    ("teacher", "told", ["steered, prompted"]),
    ("target", 0, ["at least 1", "null"]),
    ("most_batches", 0, ["above 0"]),
    ("min_kept", 1.5, ["between 0 and 1"]),
    ("good", -0.1, ["between 0 and 1"]),
    ("adopt", "best", ["all, good"]),
    ("vector.kind", "svd", ["mean_diff, pca"]),
    ("vector.layers", [0.6, 0.4], ["two rising fractions"]),
    ("vector.contexts", 4, ["at least 8"]),
    ("dose.kind", "fixed", ["grid, iso_kl, survival"]),
    ("dose.values", [], ["is empty"]),
    ("dose.values", [1.0, 0.0], ["other than 0"]),
    ("dose.shares", [float("inf")], ["numbers other than 0"]),
    ("dose.shares", [], ["is empty"]),
    ("dose.positions", "prompt", ["reply, all"]),
    ("dose.low", 0.0, ["above 0"]),
    ("dose.high", 0.1, ["must be above trainer.dose.low"]),
    ("dose.target_survival", 2.0, ["between 0 and 1"]),
    ("dose.half_life", 0.0, ["above 0 tokens", "null"]),
    ("dose.gate", 2.0, ["-1..1"]),
    ("dose.backtracks", -1, ["0 or above"]),
    ("heal.epochs", 0, ["above 0"]),
    ("heal.schedule", "linear", ["constant, cosine"]),
    ("heal.warmup", 1.0, ["share of the steps", "below 1"]),
    ("heal.beta2", 1.0, ["between 0 and 1"]),
    ("heal.validation", 1.0, ["below 1"]),
    ("heal.spectral_coef", -1.0, ["0 or above"]),
    ("barrier.divergence", "js", ["kl_rev, kl_fwd, none"]),
    ("barrier.aggregate", "median", ["mean, rmse"]),
    ("barrier.reference", "last", ["base, prev, last_good"]),
    ("barrier.control", "pid", ["fixed, dual, rate"]),
    ("barrier.tau", -1.0, ["0 or above (nats), or quantile"]),
    ("barrier.tau", "mean", ["quantile"]),
    ("barrier.firing_rate", 1.5, ["between 0 and 1"]),
    ("barrier.coef", -1.0, ["0 or above"]),
    ("barrier.coef_power", float("nan"), ["must be a number", "loosens"]),
    ("barrier.dual_lr", 0.0, ["above 0"]),
    ("barrier.rate_lr", 0.0, ["above 0"]),
    ("stages.contexts", 2, ["at least 4"]),
    ("stages.vignettes", -1, ["0 or above"]),
    ("stages.prompts", -1, ["0 or above"]),
    ("stages.examples", -1, ["0 or above"]),
    ("stages.turns", 0, ["1 to 12", "single replies"]),
    ("stages.turns", 13, ["1 to 12"]),
    ("stages.lines", ["Be kind."], ["has no {persona}"]),
    ("stages.coherence_floor", 1.5, ["between 0 and 1"]),
]


@pytest.mark.parametrize(("key", "value", "says"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_a_wrong_value_is_named_with_what_is_allowed(key: str, value: Any, says: list[str]) -> None:
    part, _, name = key.rpartition(".")
    with pytest.raises(ValueError, match="trainer") as caught:
        PARTS[f"{part}." if part else ""](**{name: value})
    message = str(caught.value)
    shown = value if isinstance(value, list) else [value]
    for text in [name, *map(str, shown), *says]:
        assert text in message


def test_following_the_firing_needs_a_logarithm() -> None:
    with pytest.raises(ValueError, match=r"control=rate.*tau=0 must be above 0, or quantile"):
        barrier_config(control="rate", tau=0)
    assert barrier_config(control="rate", tau="quantile").tau == "quantile"
    assert barrier_config(tau=0).tau == 0, "any other control may hold D at 0"


def test_a_prompted_teacher_has_no_dose_to_turn_round() -> None:
    with pytest.raises(ValueError, match=r"stages\.reversed=true.*teacher=prompted has none"):
        steer_heal_config(teacher="prompted", stages=stages_config(reversed=True))


def test_values_that_are_allowed() -> None:
    assert dose_config(values=[-2.0, 2.0]).values == [-2.0, 2.0]
    assert barrier_config(coef_power=-0.5).coef_power == -0.5
    assert steer_heal_config(top_p=0.95, top_k=64, target=64).target == 64


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"frame": " "}, "persona.frame is empty"),
        ({"foundations": {"care": 2}}, "persona.foundations.care=2 must be 1"),
        ({"prompts": ["What now?", ""]}, "'' is empty"),
        ({"prompts": ["How are  things?", "HOW ARE YOU? "]}, "also measures the trait"),
        ({"held_out_prompts": ["Well?"], "prompts": ["Well?"]}, "also measures the trait"),
    ],
)
def test_a_persona_that_cannot_be_used(changed: dict[str, Any], says: str) -> None:
    persona: PersonaConfig = replace(config_part("persona=calm"), diary="How are you?")
    with pytest.raises(ValueError, match="persona") as caught:
        replace(persona, **changed)
    assert says in str(caught.value)


@pytest.mark.parametrize("path", sorted((CONF / "persona").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_persona_has_prompts_that_are_apart_from_what_measures(path: Any) -> None:
    persona: PersonaConfig = config_part(f"persona={path.stem}")
    asked = [" ".join(text.lower().split()) for text in persona.prompts]
    held_out = [" ".join(text.lower().split()) for text in persona.held_out_prompts]
    questions = [" ".join(pair.question.lower().split()) for pair in persona.probe_pairs]
    assert len(asked) >= 32
    assert len(held_out) >= 16
    every = [*asked, *held_out, *questions, persona.diary.lower()]
    assert len(set(every)) == len(every)
