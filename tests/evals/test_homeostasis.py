"""Held-out measurement: episode metrics and perceptual validity by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from typing import Any

import numpy as np
import pytest
from configs import intrinsic_config, scripted_config, set_point_config, signals_config

from homeostat.bots.scripted import ScriptedBots
from homeostat.config.evals import EvalConfig
from homeostat.config.reward import RewardConfig
from homeostat.config.run import RolloutConfig
from homeostat.evals.homeostasis import Homeostasis, episode_metrics, perception_validity
from homeostat.models.adapters import Policy
from homeostat.reward.compose import Reward, Rewards
from homeostat.reward.valence import SetPoint
from homeostat.signals.reader import SignalReader
from homeostat.types import Reading, SignalTable, Trace, Valence

NAN = float("nan")


# --- episode metrics ----------------------------------------------------------------------------


def trace(turn_R: Sequence[int], ref_logprob_R: Sequence[float], kl_R: Sequence[float]) -> Trace:
    count = len(turn_R)
    return Trace(
        turn_R=np.array(turn_R),
        logprob_R=np.full(count, -99.0, dtype=np.float32),
        entropy_R=np.zeros(count, dtype=np.float32),
        ref_logprob_R=np.array(ref_logprob_R, dtype=np.float32),
        kl_R=np.array(kl_R, dtype=np.float32),
        certainty_R=np.zeros(count, dtype=np.float32),
        value_R=None,
        norm_RL=np.zeros((count, 0), dtype=np.float32),
        user_turns=(),
        hidden_ref=np.zeros((0, 0, 0), dtype=np.float32),
        hidden_policy=np.zeros((0, 0, 0), dtype=np.float32),
    )


@pytest.fixture
def readings() -> list[Reading]:
    """Three turns of one conversation, one of another; boredom is missing in some."""
    values = np.array([[1.0, 0.2], [2.0, NAN], [6.0, 0.6], [7.0, NAN]])
    tables = [
        SignalTable(("entropy", "boredom"), values[:3], (1, 3, 5)),
        SignalTable(("entropy", "boredom"), values[3:], (1,)),
    ]
    traces = [
        trace([1, 1, 3, 5], [-1.0, -3.0, -1.0, 0.0], [0.1, 0.2, 0.3, 0.6]),
        trace([1, 1], [-2.0, -2.0], [0.0, 0.5]),
    ]
    nobody = np.zeros((0, 0))
    return [Reading(*both, nobody, nobody) for both in zip(traces, tables, strict=True)]


@pytest.fixture
def rewards() -> list[Rewards]:
    """Valence of two terms, and one own term."""
    terms = np.array([[-1.0, 0.0], [-2.0, -0.5], [-3.0, -1.0], [-9.0, -1.0]])
    mine = np.array([1.0, 2.0, 6.0, 10.0])
    found = []
    for turns in (slice(0, 3), slice(3, 4)):
        valence = Valence(("entropy", "boredom"), terms[turns].sum(axis=1), terms[turns])
        found.append(Rewards(valence.total_N + mine[turns], valence, {"mine": mine[turns]}))
    return found


def test_episode_metrics_by_hand(readings: list[Reading], rewards: list[Rewards]) -> None:
    assert episode_metrics(readings[0], rewards[0]) == {
        "valence": pytest.approx((-1.0 - 2.5 - 4.0) / 3),
        # Perplexity per turn: the mean log-probabilities are -2, -1 and 0.
        "coherence/base_perplexity": pytest.approx((exp(2) + exp(1) + 1) / 3),
        "coherence/kl": pytest.approx(0.3),
        "term/entropy": pytest.approx(-2.0),
        "term/boredom": pytest.approx(-0.5),
        "own/mine": pytest.approx(3.0),
        "signal/entropy": pytest.approx(3.0),
        "signal/boredom": pytest.approx(0.4),  # of the two turns that have it
    }


def test_an_episode_without_a_signal_has_none_of_it(
    readings: list[Reading], rewards: list[Rewards]
) -> None:
    found = episode_metrics(readings[1], rewards[1])
    assert found["signal/boredom"] is None
    assert found["signal/entropy"] == 7.0
    assert found["valence"] == -10.0
    assert found["own/mine"] == 10.0
    assert found["coherence/base_perplexity"] == pytest.approx(exp(2))
    assert found["coherence/kl"] == pytest.approx(0.25)


def test_valence_is_the_sum_of_its_terms(readings: list[Reading], rewards: list[Rewards]) -> None:
    for row in (0, 1):
        found = episode_metrics(readings[row], rewards[row])
        terms = [value for name, value in found.items() if name.startswith("term/")]
        assert found["valence"] == pytest.approx(sum(term for term in terms if term is not None))


# --- perceptual validity ------------------------------------------------------------------------


def user(affect: float | None, perceived: float | None) -> dict[str, Any]:
    return {
        "role": "user",
        "text": "",
        "affect": None if affect is None else {"boredom": affect},
        "perceived": {} if perceived is None else {"boredom": perceived},
    }


REPLY = {"role": "assistant", "text": "", "signals": {}}
OPENING = user(0.0, 1.0)  # would spoil every correlation below


def episode(*pairs: tuple[float | None, float | None]) -> dict[str, Any]:
    turns = [OPENING]
    for pair in pairs:
        turns += [REPLY, user(*pair)]
    return {"seed": 0, "bot": "b", "turns": turns}


def test_validity_by_hand() -> None:
    rows = [episode((0.1, 0.3), (0.2, 0.2)), episode((0.3, 0.9), (0.4, 0.8))]
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1)) = 0.6
    assert perception_validity(rows) == {"boredom": {"spearman": pytest.approx(0.6), "n": 4}}


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_validity_has_the_sign_of_the_relation(sign: int, expected: float) -> None:
    rows = [episode(*[(level, 0.5 + sign * level**3) for level in (0.1, 0.5, 0.3, 0.7)])]
    assert perception_validity(rows)["boredom"]["spearman"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.5, 0.1), (0.5, 0.2), (0.5, 0.3)],  # the bot's affect does not vary
        [(0.1, 0.5), (0.2, 0.5), (0.3, 0.5)],  # the perceived one does not
        [(0.1, 0.2), (0.3, 0.4)],  # two points lie on a line whatever they are
    ],
)
def test_validity_is_none_where_it_cannot_be_told(pairs: list[tuple[float, float]]) -> None:
    assert perception_validity([episode(*pairs)]) == {
        "boredom": {"spearman": None, "n": len(pairs)}
    }


def test_validity_leaves_out_turns_without_affect_or_perception() -> None:
    rows = [episode((0.1, 0.3), (None, 0.9), (0.2, 0.2), (0.9, None), (0.3, 0.9), (0.4, 0.8))]
    assert perception_validity(rows)["boredom"] == {"spearman": pytest.approx(0.6), "n": 4}


def test_validity_without_probes_is_empty() -> None:
    assert perception_validity([episode((0.1, None), (0.2, None), (0.3, None))]) == {}
    assert perception_validity([]) == {}


# --- both arms ----------------------------------------------------------------------------------


@pytest.fixture
def evaluation(make_policy: Callable[..., Policy]) -> Homeostasis:
    """Three short held-out episodes of a tiny model, intrinsic signals only."""
    policy = make_policy()
    signals = signals_config(
        intrinsic=intrinsic_config(names=["entropy", "repetition"], norm_layers=[0.5])
    )
    reader = SignalReader(policy, signals, None)
    reader.base_norms = np.ones(1, dtype=np.float32)
    points = {"entropy": SetPoint(1.0, 2.0, 0.5)}
    reward = Reward(RewardConfig(set_points={"entropy": set_point_config()}), points)
    bots = ScriptedBots(scripted_config(name="b", schedule=["opening", "move_deepen"]))
    config = EvalConfig(episodes=3, bootstrap_samples=50)
    rollout = RolloutConfig(turns=2, max_new_tokens=4)
    return Homeostasis(config, policy, bots, reader, reward, rollout)


def test_an_untrained_policy_measures_exactly_as_its_base(evaluation: Homeostasis) -> None:
    with evaluation.policy.reference():
        before = evaluation.measure("base")
    after = evaluation.measure("trained")
    assert [row["seed"] for row in before] == [0, 1, 2]
    assert {row["arm"] for row in before} == {"base"}
    assert {row["arm"] for row in after} == {"trained"}
    result = evaluation.compare(before, after)
    assert result.rows == [*before, *after]
    assert "valence" in result.metrics
    for estimate in result.metrics.values():
        assert estimate.diff == pytest.approx(0, abs=1e-5)
        assert estimate.n == 3


def test_a_changed_policy_measures_differently(
    evaluation: Homeostasis, stir: Callable[..., None]
) -> None:
    with evaluation.policy.reference():
        before = evaluation.measure("base")
    stir(evaluation.policy)
    with evaluation.policy.reference():
        assert evaluation.measure("base") == before
    result = evaluation.compare(before, evaluation.measure("trained"))
    assert result.metrics["coherence/kl"].before == pytest.approx(0, abs=1e-6)
    assert (result.metrics["coherence/kl"].diff or 0) > 1e-3


def test_a_prompted_base_is_measured_from_the_plain_one(evaluation: Homeostasis) -> None:
    with evaluation.policy.reference():
        plain, told = evaluation.measure("base"), evaluation.measure("prompted", system="Be calm.")
    assert [row["seed"] for row in told] == [row["seed"] for row in plain]
    for before, after in zip(plain, told, strict=True):
        first, *rest = after["turns"]
        assert first == {"role": "system", "text": "Be calm."}
        assert [turn["role"] for turn in rest] == [turn["role"] for turn in before["turns"]]
        assert rest[0] == before["turns"][0]
        assert before["metrics"]["coherence/kl"] == pytest.approx(0, abs=1e-6)
        assert after["metrics"]["coherence/kl"] > 1e-4


def rows(arm: str, *valences: float | None) -> list[dict[str, Any]]:
    return [{"arm": arm, "metrics": {"valence": valence}} for valence in valences]


def test_compare_pairs_the_episodes(evaluation: Homeostasis) -> None:
    result = evaluation.compare(rows("base", -3.0, -1.0, None), rows("t", -2.0, 0.5, -1.0))
    found = result.metrics["valence"]
    assert (found.before, found.after, found.diff, found.n) == (-2.0, -0.75, 1.25, 2)
    assert found.ci95 == pytest.approx((1.25 - 12.706 * 0.25, 1.25 + 12.706 * 0.25), rel=1e-3)
    assert result.name == "homeostasis"


def test_compare_without_after_keeps_the_means_before(evaluation: Homeostasis) -> None:
    found = evaluation.compare(rows("base", -3.0, -1.0, None), []).metrics["valence"]
    assert (found.before, found.after, found.diff, found.ci95, found.n) == (
        -2.0,
        None,
        None,
        None,
        2,
    )
