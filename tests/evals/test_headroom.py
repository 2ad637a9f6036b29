"""What a reply decides: planted effects are found, and nothing is where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from worlds import Parrots

from homeostat.config.run import RolloutConfig
from homeostat.evals.headroom import (
    BY_NONSENSE,
    EARNED,
    NOT_EARNED,
    Shown,
    affect_loop,
    as_read,
    as_salads,
    headroom_of,
    loop_verdicts,
    reply_share,
    term_headroom,
    within_r,
)
from homeostat.models.adapters import Policy
from homeostat.report.metrics import finite
from homeostat.reward.valence import SetPoint
from homeostat.rollout.episodes import play
from homeostat.types import Conversation, Episode, TokenStream, Turn

RNG = np.random.default_rng(0)
USERS = RNG.normal(size=(48, 1))
REPLIES = RNG.normal(size=(48, 8))
FEW = TokenStream([1], [-1], [False])


def episodes(affect: float, texts: list[str], seed: int = 0) -> list[Episode]:
    """One user's answers to some replies, each with its affect."""
    return [
        Episode(
            seed,
            "bot",
            Conversation(
                (
                    Turn("user", "hi"),
                    Turn("assistant", str(number)),
                    Turn("user", text, affect={"boredom": affect + 0.1 * number}),
                )
            ),
            FEW,
        )
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(("users", "share"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.1)])
def test_share_of_the_variance_that_a_reply_decides(users: float, share: float) -> None:
    many = np.random.default_rng(1)
    values = users * many.normal(size=(4000, 1)) + many.normal(size=(4000, 8))
    assert reply_share(values) == pytest.approx(share, abs=0.02)


def test_the_share_by_hand() -> None:
    """Within: variances 2 and 2; the means 1 and 5 vary by 8, less 2 / 2."""
    values = np.array([[0.0, 2.0], [4.0, 6.0]])
    assert reply_share(values) == pytest.approx(2 / (2 + 8 - 1))
    assert np.isnan(reply_share(np.zeros((3, 2))))


def test_correlation_within_users_does_not_see_which_user_it_is() -> None:
    assert within_r(USERS + 0 * REPLIES, USERS + REPLIES) != pytest.approx(1)
    assert within_r(10 * USERS + REPLIES, -10 * USERS + REPLIES) == pytest.approx(1)
    assert within_r(USERS + REPLIES, USERS - REPLIES) == pytest.approx(-1)
    assert np.isnan(within_r(USERS + 0 * REPLIES, REPLIES))


def test_what_can_be_earned_what_cannot_and_what_nonsense_earns() -> None:
    term = -np.abs(0.2 * REPLIES) - 1
    cases = {
        EARNED: (term, term.mean(axis=1) - 0.5),
        NOT_EARNED: (0.01 * term, 0.01 * term.mean(axis=1) - 0.5),
        BY_NONSENSE: (term, term.mean(axis=1) + 0.5),
    }
    for verdict, (terms, of_salad) in cases.items():
        found = term_headroom(terms, of_salad)
        assert found["verdict"] == verdict
        assert found["n_seeds"] == 48
        for key in ("reply_share", "best_of_8", "salad"):
            low, high = found[key]["ci95"]
            assert low <= found[key]["mean"] <= high


def test_gains_by_hand() -> None:
    found = term_headroom(np.array([[-1.0, -3.0], [-2.0, -2.0]]), np.array([-4.0, -2.5]))
    assert found["best_of_2"]["mean"] == pytest.approx((1 + 0) / 2)
    assert found["salad"]["mean"] == pytest.approx((-2 - 0.5) / 2)


def test_headroom_is_that_of_the_points_whatever_was_shown_before() -> None:
    """Boredom of three users and two replies; what lies above 0.2 costs, in tolerances of 0.1."""
    boredom = np.array([[0.2, 0.4], [0.3, 0.5], [0.2, 0.2]])
    other = np.full((3, 2), np.nan)
    kept = Shown(
        ("other", "boredom"),
        np.stack([other, boredom], axis=2),
        np.array([[np.nan, 0.4], [np.nan, 0.6], [np.nan, 0.2]]),
        {"boredom": {"slope": 0.5, "offset": 0.1}},
    )
    again = Shown.of(json.loads(json.dumps(finite(kept.record))))
    assert np.array_equal(again.replies_SKN, kept.replies_SKN, equal_nan=True)
    points = {"boredom": SetPoint(0.5, 0.2, 0.1, side="above")}
    found = headroom_of(again, points).terms["boredom"]
    # terms 0, -1; -0.5, -1.5; 0, 0: best less mean 0.5, 0.5, 0; salads -1, -2, 0 less -0.5, -1, 0
    assert found["best_of_2"]["mean"] == pytest.approx(1 / 3)
    assert found["salad"]["mean"] == pytest.approx(-0.5)
    # felt 0.2 +- 0.1 is read at 0.2 +- 0.05: the same set point, half the tolerance
    assert headroom_of(again, points, felt=True).terms["boredom"]["salad"]["mean"] == pytest.approx(
        -1
    )


def test_users_without_a_reading_are_left_out() -> None:
    terms = np.vstack([REPLIES, np.full((1, 8), np.nan)])
    assert term_headroom(terms, np.zeros(49))["n_seeds"] == 48
    assert term_headroom(terms[-2:], np.zeros(2)) == {"verdict": None, "n_seeds": 1}


def test_the_loop_by_hand() -> None:
    groups = [episodes(0.1, ["a", "b", "c"]), episodes(0.5, ["a", "a", "d"], seed=1)]
    read = np.array([[0.0], [0.1], [0.2], [0.9], [0.8], [0.7]])
    found = affect_loop(groups, read, ("boredom",))["boredom"]
    assert found["within_r"] == pytest.approx(0.0, abs=1e-12), "one user up, the other one down"
    assert (found["n_seeds"], found["n_replies"]) == (2, 6)
    assert found["identical_answers"] == pytest.approx(2 / 6)


def test_the_line_from_felt_to_read_by_hand() -> None:
    """Felt 0.1, 0.2, 0.3 and read 0.4, 0.45, 0.5: half of it, from 0.35 on."""
    groups = [episodes(0.1, ["a", "b", "c"])]
    found = affect_loop(groups, np.array([[0.4], [0.45], [0.5]]), ("boredom",))["boredom"]
    assert (found["slope"], found["offset"]) == pytest.approx((0.5, 0.35))
    alike = affect_loop([episodes(0.1, ["a"])], np.array([[0.4]]), ("boredom",))["boredom"]
    assert (alike["slope"], alike["offset"]) == (None, None)


def test_a_felt_level_is_moved_to_where_it_is_read() -> None:
    """Felt 0.3 +- 0.2 is read at 0.05 +- 0.1: a user is as far off in either."""
    felt = SetPoint(0.5, 0.3, 0.2, dead_zone=0.1)
    loop = {
        "sentiment": {"slope": 0.5, "offset": -0.1},
        "boredom": {"slope": -0.2, "offset": 0.4},
        "confusion": {"slope": None, "offset": None},
    }
    points = dict.fromkeys((*loop, "entropy"), felt)
    moved = as_read(points, loop)
    assert list(moved) == ["sentiment", "entropy"], "no place for what does not rise"
    assert moved["entropy"] == felt
    point = moved["sentiment"]
    assert (point.setpoint, point.tolerance, point.dead_zone) == pytest.approx((0.05, 0.1, 0.05))
    assert (point.weight, point.side) == (felt.weight, felt.side)
    assert point.distance(np.array([-0.1 + 0.5 * 0.8])) == pytest.approx(2.0)
    assert felt.distance(np.array([0.8])) == pytest.approx(2.0)


def test_a_user_whose_feelings_nobody_knows_is_missing() -> None:
    own = episodes(0.1, ["a", "b"])
    silent = [
        replace(e, conversation=Conversation((*e.conversation.turns[:2], Turn("user", "x"))))
        for e in own
    ]
    found = affect_loop([own, silent], np.array([[0.1], [0.2], [0.3], [0.4]]), ("boredom",))
    assert found["boredom"]["n_seeds"] == 1
    assert found["boredom"]["within_r"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("r", "low", "verdict"),
    [(0.6, 0.5, "trusted"), (0.59, 0.5, "weak"), (0.3, 0.21, "weak"), (0.3, 0.2, "unusable")],
)
def test_what_a_reading_is_worth(r: float, low: float, verdict: str) -> None:
    loop: dict[str, dict[str, Any]] = {"boredom": {"within_r": r, "ci95": (low, 1.0), "n_seeds": 9}}
    found = loop_verdicts(loop)["boredom"]
    assert found[0] == verdict
    assert f"r = {r:.2f} within replies to the same words" in found[1]
    loop["boredom"]["ci95"] = None
    assert loop_verdicts(loop) == {}


def test_a_salad_has_the_words_of_the_reply_in_another_order(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    (episode,) = play(policy, Parrots(), [3], RolloutConfig(turns=1, max_new_tokens=8))
    (made,) = as_salads(policy, Parrots(), [episode])
    turns, own = made.conversation.turns, episode.conversation.turns
    assert sorted(turns[1].text.split()) == sorted(own[1].text.split())
    assert turns[0] == own[0]
    assert made.seed == episode.seed
    assert sum(made.tokens.response) == len(turns[1].token_ids or ())
