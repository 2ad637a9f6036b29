"""The reward of a turn and of a token, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from configs import set_point_config

from homeostat.config.reward import RewardConfig
from homeostat.errors import HomeostatError
from homeostat.reward.compose import Reward, Rewards, drive_reduction, token_rewards
from homeostat.reward.valence import SetPoint
from homeostat.types import Conversation, Reading, SignalTable, Trace, Turn, Valence

NAN = float("nan")
POINTS = {"entropy": SetPoint(weight=2.0, setpoint=1.0, tolerance=0.5)}


# --- own terms, found by their dotted path in this module ---------------------------------------

Signals = Mapping[str, np.ndarray]


def reply_words(
    conversation: Conversation, signals: Signals, trace: Trace, per_word: float = 1.0
) -> list[float]:
    assert signals
    assert len(trace.turn_R)
    texts = [conversation.turns[i].text for i in conversation.assistant_turns]
    return [per_word * len(text.split()) for text in texts]


def twice_boredom(_talk: Conversation, signals: Signals, _trace: Trace) -> np.ndarray:
    return 2 * signals["boredom"]


def mean_logprob(talk: Conversation, _signals: Signals, trace: Trace) -> list[float]:
    return [float(trace.logprob_R[trace.turn_R == i].mean()) for i in talk.assistant_turns]


def one_number(_talk: Conversation, _signals: Signals, _trace: Trace) -> list[float]:
    return [1.0]


def not_a_number(talk: Conversation, _signals: Signals, _trace: Trace) -> list[float]:
    return [NAN for _ in talk.assistant_turns]


# --- made-up readings ---------------------------------------------------------------------------


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    turns = (
        Turn(roles[i % 2], text, token_ids=(1,) if i % 2 else None) for i, text in enumerate(texts)
    )
    return Conversation(tuple(turns))


def trace(
    turn_R: Sequence[int],
    logprob_R: Sequence[float],
    ref_logprob_R: Sequence[float] | None = None,
) -> Trace:
    count = len(turn_R)
    return Trace(
        turn_R=np.array(turn_R),
        logprob_R=np.array(logprob_R, dtype=np.float32),
        entropy_R=np.zeros(count, dtype=np.float32),
        ref_logprob_R=np.array(ref_logprob_R or logprob_R, dtype=np.float32),
        kl_R=np.zeros(count, dtype=np.float32),
        certainty_R=np.zeros(count, dtype=np.float32),
        value_R=None,
        norm_RL=np.zeros((count, 0), dtype=np.float32),
        user_turns=(),
        hidden_ref=np.zeros((0, 0, 0), dtype=np.float32),
        hidden_policy=np.zeros((0, 0, 0), dtype=np.float32),
    )


TALKS = [
    conversation("hi", "a b c", "and", "d", "bye"),
    conversation("hey", "e f", "bye"),
]


def readings(
    entropy: Sequence[float] = (1.0, 1.5, 0.0), boredom: Sequence[float] = (0.1, 0.2, 0.3)
) -> list[Reading]:
    """Two assistant turns of the first conversation, one of the second."""
    values = np.stack([entropy, boredom], axis=1).astype(float)
    tables = [
        SignalTable(("entropy", "boredom"), values[:2], (1, 3)),
        SignalTable(("entropy", "boredom"), values[2:], (1,)),
    ]
    traces = [trace([1, 1, 3], [-1.0, -3.0, -5.0]), trace([1], [-0.5])]
    nobody = np.zeros((0, 0))
    return [Reading(*both, nobody, nobody) for both in zip(traces, tables, strict=True)]


def scored(reward: Reward, readings: Sequence[Reading]) -> Rewards:
    """The rewards of both conversations as if they were turns of one."""
    rewards = reward.score(TALKS, readings)
    level = Valence(
        rewards[0].valence.names,
        np.concatenate([r.valence.total_N for r in rewards]),
        np.concatenate([r.valence.terms_NS for r in rewards]),
    )
    terms = {
        name: np.concatenate([r.own_terms[name] for r in rewards]) for name in rewards[0].own_terms
    }
    return Rewards(np.concatenate([r.total_N for r in rewards]), level, terms)


def reward(points: Mapping[str, SetPoint] = POINTS, **terms: Mapping[str, Any]) -> Reward:
    config = RewardConfig(
        set_points={name: set_point_config() for name in ("entropy", "boredom")},
        terms={name: dict(term) for name, term in terms.items()},
    )
    return Reward(config, points)


def own(function: Any, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{function.__name__}", **options}


# --- turns --------------------------------------------------------------------------------------


def test_without_own_terms_the_reward_is_valence() -> None:
    found = scored(reward(), readings())
    np.testing.assert_allclose(found.total_N, [0.0, -2.0, -4.0])  # -2 |x - 1| / 0.5
    np.testing.assert_allclose(found.valence.total_N, found.total_N)
    assert found.own_terms == {}


def test_an_own_term_is_weighted_and_gets_its_options() -> None:
    found = scored(reward(words=own(reply_words, weight=-0.5, per_word=10.0)), readings())
    np.testing.assert_allclose(found.own_terms["words"], [-15.0, -5.0, -10.0])
    np.testing.assert_allclose(found.total_N, [-15.0, -7.0, -14.0])
    np.testing.assert_allclose(found.valence.total_N, [0.0, -2.0, -4.0])


def test_external_praise_grows_with_the_signal_and_knows_no_enough() -> None:
    term = {"_target_": "homeostat.reward.terms.praise", "weight": 5.0, "signal": "boredom"}
    found = scored(reward(points={}, praise=term), readings(boredom=(-0.5, 0.2, 1.0)))
    np.testing.assert_allclose(found.total_N, [-2.5, 1.0, 5.0])


def test_the_weight_of_an_own_term_is_one_unless_told() -> None:
    found = scored(reward(words=own(reply_words)), readings())
    np.testing.assert_allclose(found.own_terms["words"], [3.0, 1.0, 2.0])


def test_own_terms_get_the_signals_and_the_trace_of_their_own_conversation() -> None:
    found = scored(reward(bored=own(twice_boredom), sure=own(mean_logprob)), readings())
    np.testing.assert_allclose(found.own_terms["bored"], [0.2, 0.4, 0.6])
    np.testing.assert_allclose(found.own_terms["sure"], [-2.0, -5.0, -0.5])
    np.testing.assert_allclose(found.total_N, [-1.8, -6.6, -3.9])


def test_own_terms_alone_are_a_reward() -> None:
    found = scored(reward({}, words=own(reply_words)), readings())
    np.testing.assert_allclose(found.total_N, [3.0, 1.0, 2.0])


def test_an_own_term_with_the_wrong_count_is_refused() -> None:
    with pytest.raises(HomeostatError) as caught:
        reward(short=own(one_number)).score(TALKS, readings())
    message = str(caught.value)
    assert "reward.terms.short" in message
    assert "(1,)" in message
    assert "2 assistant turns" in message


@pytest.mark.parametrize("target", ["no_such_module.term", f"{__name__}.no_such_term"])
def test_an_own_term_that_cannot_be_imported_is_refused(target: str) -> None:
    with pytest.raises(HomeostatError) as caught:
        reward(mine={"_target_": target})
    assert f"reward.terms.mine._target_={target}" in str(caught.value)


def test_a_missing_signal_is_refused_by_name() -> None:
    with pytest.raises(HomeostatError) as caught:
        reward().score(TALKS, readings(entropy=(1.0, NAN, 0.0)))
    message = str(caught.value)
    assert "nan" in message
    assert "entropy" in message
    assert "boredom" not in message


def test_an_infinite_signal_is_refused_by_name() -> None:
    with pytest.raises(HomeostatError, match=r"-inf.*entropy"):
        reward().score(TALKS, readings(entropy=(1.0, 2.0, float("inf"))))


def test_an_own_term_that_is_no_number_is_refused() -> None:
    with pytest.raises(HomeostatError, match="own term"):
        reward(mine=own(not_a_number)).score(TALKS, readings())


def test_a_missing_signal_without_weight_is_no_error() -> None:
    found = scored(reward(), readings(boredom=(NAN, NAN, NAN)))
    np.testing.assert_allclose(found.total_N, [0.0, -2.0, -4.0])


def test_a_missing_signal_without_weight_is_not_blamed_for_an_own_term() -> None:
    with pytest.raises(HomeostatError) as caught:
        reward(mine=own(not_a_number)).score(TALKS, readings(boredom=(NAN, NAN, NAN)))
    assert "boredom" not in str(caught.value)
    assert "own term" in str(caught.value)


def test_a_missing_signal_without_weight_is_not_blamed_for_another_signal() -> None:
    with pytest.raises(HomeostatError) as caught:
        reward().score(TALKS, readings(entropy=(NAN, 1.0, 1.0), boredom=(NAN, NAN, NAN)))
    assert "entropy" in str(caught.value)
    assert "boredom" not in str(caught.value)


# --- drive reduction ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "gain"),
    [([-4.0, -1.0], [-4.0, 3.0]), ([-2.0], [-2.0]), ([0.0, -3.0, -3.5], [0.0, -3.0, -0.5])],
)
def test_drive_reduction_by_hand(level: list[float], gain: list[float]) -> None:
    """A first turn is compared with perfect homeostasis."""
    assert drive_reduction(np.array(level)).tolist() == gain


def test_rewards_of_an_episode_sum_to_its_last_valence_under_drive_reduction() -> None:
    own = {"boredom_twice": {"_target_": f"{__name__}.twice_boredom"}}
    config = RewardConfig(set_points={"entropy": set_point_config()}, terms=own, mode="reduction")
    found = scored(Reward(config, POINTS), readings())
    # Valence 0, -2, -4; own terms 0.2, 0.4, 0.6 come on top, as they are.
    np.testing.assert_allclose(found.total_N, [0.0 + 0.2, -2.0 + 0.4, -4.0 + 0.6])
    np.testing.assert_allclose(found.valence.total_N, [0.0, -2.0, -4.0])


def test_beginning_badly_does_not_pay_under_drive_reduction() -> None:
    config = RewardConfig(set_points={"entropy": set_point_config()}, mode="reduction")
    totals = [
        Reward(config, POINTS).score(TALKS, readings(entropy=(first, 1.0, 1.0)))[0].total_N.sum()
        for first in (1.0, 3.0)
    ]
    assert totals[1] <= totals[0]


# --- tokens -------------------------------------------------------------------------------------


def test_token_rewards_by_hand() -> None:
    found = token_rewards(
        trace([1, 1, 3, 3, 3], [-1.0, -2.0, -3.0, -1.0, -0.5], [-2.0, -2.0, -1.0, -1.5, -0.5]),
        turns=(1, 3),
        turn_rewards=np.array([-4.0, -7.0]),
        kl_coef=0.5,
    )
    # log-ratios 1, 0, -2, 0.5, 0; the turns' rewards lie on their last tokens.
    np.testing.assert_allclose(found, [-0.5, -4.0, 1.0, -0.25, -7.0])


def test_token_rewards_sum_to_turn_rewards_minus_the_weighted_log_ratios() -> None:
    rng = np.random.default_rng(1)
    logprob, reference = -rng.random((2, 12)) * 5
    turns = [1, 1, 3, 3, 3, 3, 5, 7, 7, 7, 7, 7]
    rewards = rng.normal(size=4)
    found = token_rewards(
        trace(turns, logprob.tolist(), reference.tolist()), (1, 3, 5, 7), rewards, 0.3
    )
    ratios = sum(float(a) - float(b) for a, b in zip(logprob, reference, strict=True))
    assert found.sum() == pytest.approx(float(sum(rewards)) - 0.3 * ratios, abs=1e-5)


def test_moving_away_from_the_reference_costs() -> None:
    surer = trace([1, 1], [-0.1, -0.1], [-1.0, -1.0])
    found = token_rewards(surer, (1,), np.array([0.0]), kl_coef=0.2)
    assert (found < 0).all()
    np.testing.assert_allclose(found, [-0.18, -0.18], rtol=1e-6)


def test_without_a_penalty_only_the_last_token_of_a_turn_is_rewarded() -> None:
    found = token_rewards(
        trace([1, 3, 3], [-1.0] * 3, [-9.0] * 3), (1, 3), np.array([2.0, 5.0]), kl_coef=0.0
    )
    assert found.tolist() == [2.0, 0.0, 5.0]


def test_token_rewards_leave_the_trace_alone() -> None:
    found = trace([1, 1], [-1.0, -2.0], [-2.0, -2.0])
    token_rewards(found, (1,), np.array([3.0]), kl_coef=0.5)
    assert found.logprob_R.tolist() == [-1.0, -2.0]
    assert found.ref_logprob_R.tolist() == [-2.0, -2.0]


# --- own terms that go wrong --------------------------------------------------------------------


def raises(*_: Any) -> list[float]:
    raise KeyError("oops")


def returns(_talk: Conversation, _signals: Signals, _trace: Trace, what: str = "") -> Any:
    return {
        "None": None,
        "text": "much",
        "words": ["1.0"] * 2,
        "mapping": {1: 1.0},
        "one": 1.0,
        "ragged": [[1.0], 2.0],
        "columns": np.ones((2, 1)),
    }[what]


def some_missing(talk: Conversation, _signals: Signals, _trace: Trace) -> list[float | None]:
    return [1.0, None][: len(talk.assistant_turns)]


def tensor(talk: Conversation, _signals: Signals, _trace: Trace) -> torch.Tensor:
    """With a gradient, in half precision."""
    found = torch.arange(len(talk.assistant_turns), dtype=torch.bfloat16, requires_grad=True)
    return found + 0.5


def tensors(talk: Conversation, signals: Signals, trace: Trace) -> list[torch.Tensor]:
    return list(tensor(talk, signals, trace))


def test_an_own_term_that_fails_is_named_with_its_error() -> None:
    with pytest.raises(HomeostatError, match=r"reward\.terms\.mine failed: KeyError: 'oops'"):
        reward(mine=own(raises)).score(TALKS, readings())


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("None", "None, of shape (),"),
        ("text", "'much' for"),
        ("words", "['1.0', '1.0'] for"),
        ("mapping", "{1: 1.0} for"),
        ("one", "1.0, of shape (),"),
        ("ragged", "[[1.0], 2.0] for"),
        ("columns", "of shape (2, 1),"),
    ],
)
def test_an_own_term_that_returns_no_numbers_is_named_with_what_it_returned(
    what: str, said: str
) -> None:
    with pytest.raises(HomeostatError) as caught:
        reward(mine=own(returns, what=what)).score(TALKS, readings())
    assert str(caught.value).startswith("reward.terms.mine returned ")
    assert said in str(caught.value)
    assert "2 assistant turns; it must return one number per assistant turn" in str(caught.value)


@pytest.mark.parametrize(
    ("term", "said"), [(some_missing, "None for assistant turn 2 of 2"), (not_a_number, "nan for")]
)
def test_an_own_term_must_judge_every_turn(term: Any, said: str) -> None:
    with pytest.raises(HomeostatError) as caught:
        reward(mine=own(term)).score(TALKS, readings())
    assert f"reward.terms.mine gave {said}" in str(caught.value)


@pytest.mark.parametrize("term", [tensor, tensors])
def test_tensors_of_an_own_term_are_taken_without_their_gradient(term: Any) -> None:
    found = scored(reward(mine=own(term)), readings())
    np.testing.assert_allclose(found.own_terms["mine"], [0.5, 1.5, 0.5])


@pytest.mark.parametrize("weight", ["much", float("inf"), None])
def test_the_weight_of_an_own_term_is_a_finite_number(weight: Any) -> None:
    with pytest.raises(HomeostatError, match=rf"reward\.terms\.mine\.weight={weight}"):
        reward(mine=own(reply_words, weight=weight))


def test_an_own_term_that_is_no_function_is_refused() -> None:
    with pytest.raises(HomeostatError, match=r"reward\.terms\.mine\._target_=.* no callable"):
        reward(mine={"_target_": f"{__name__}.POINTS"})


# --- whose feelings count -----------------------------------------------------------------------

BOREDOM_ALONE = {"boredom": SetPoint(1.0, 0.0, 1.0)}


def felt(*affects: float | None) -> Conversation:
    """A conversation whose user feels this bored after each reply."""
    turns = [Turn("user", f"hi {affects}")]
    for affect in affects:
        known = None if affect is None else {"boredom": affect}
        turns += [Turn("assistant", "a", token_ids=(1,)), Turn("user", "ok", affect=known)]
    return Conversation(tuple(turns))


def read(*boredom: float) -> Reading:
    turns = tuple(range(1, 2 * len(boredom), 2))
    values = np.array([[1.0, b] for b in boredom])
    table = SignalTable(("entropy", "boredom"), values, turns)
    return Reading(trace(turns, [-1.0] * len(turns)), table, np.zeros((0, 0)), np.zeros((0, 0)))


def paid(affect: str, talks: list[Conversation], reads: list[Reading]) -> list[list[float]]:
    reward = Reward(
        RewardConfig(set_points={"boredom": set_point_config()}, affect=affect), BOREDOM_ALONE
    )
    return [one.total_N.tolist() for one in reward.score(talks, reads)]


def test_the_true_affect_takes_the_place_of_the_reading() -> None:
    talks, reads = [felt(0.25, 0.5)], [read(0.9, 0.8)]
    assert paid("read", talks, reads) == [[-0.9, -0.8]]
    assert paid("felt", talks, reads) == [[-0.25, -0.5]]
    assert reads[0].signals.column("boredom").tolist() == [0.9, 0.8], "readings are left alone"


def test_own_terms_are_paid_by_the_same_feelings() -> None:
    """Praise of the positive control: the happier the user is, not the happier it is read."""
    term = {"_target_": "homeostat.reward.terms.praise", "signal": "boredom"}
    for affect, expected in (("read", [0.9, 0.8]), ("felt", [0.25, 0.5])):
        reward = Reward(RewardConfig(terms={"praise": term}, affect=affect), {})
        (found,) = reward.score([felt(0.25, 0.5)], [read(0.9, 0.8)])
        assert found.own_terms["praise"].tolist() == expected


def test_a_feeling_that_nobody_knows_is_no_reward() -> None:
    with pytest.raises(HomeostatError, match="boredom has no finite value"):
        paid("felt", [felt(None)], [read(0.9)])


def test_a_feeling_that_was_not_told_is_paid_as_the_others_of_the_batch() -> None:
    """The mean of what is known, 0.2 and 0.6; readings and what is known are left alone."""
    talks, reads = [felt(0.2, None), felt(0.6)], [read(0.9, 0.8), read(0.7)]
    np.testing.assert_allclose(paid("felt", talks, reads)[0], [-0.2, -0.4])
    np.testing.assert_allclose(paid("felt", talks, reads)[1], [-0.6])
    assert reads[0].signals.column("boredom").tolist() == [0.9, 0.8]


def test_yoked_users_are_paid_for_what_somebody_else_says() -> None:
    """Two groups of two: each gets the reading of the other group, and all are used once."""
    talks = [felt(0.1), felt(0.1), felt(0.2), felt(0.2)]
    reads = [read(0.1), read(0.2), read(0.3), read(0.4)]
    assert paid("yoked", talks, reads) == [[-0.3], [-0.4], [-0.1], [-0.2]]


def test_yoking_a_user_to_itself_is_refused() -> None:
    for talks, reads in (
        ([felt(0.1)], [read(0.1)]),
        ([felt(0.1), felt(0.1)], [read(0.1), read(0.2)]),
        ([felt(0.1), felt(0.1, 0.2)], [read(0.1), read(0.1, 0.2)]),
    ):
        with pytest.raises(HomeostatError, match=r"reward\.affect=yoked needs another user"):
            paid("yoked", talks, reads)


def test_noise_follows_from_the_words_and_from_nothing_else() -> None:
    config = RewardConfig(terms={"noise": {"_target_": "homeostat.reward.terms.noise"}})
    talk = conversation("hi", "a b", "and", "c", "bye")
    other = conversation("hello", "c", "so", "a b", "bye")
    reads = [read(0.1, 0.2), read(0.9, 0.8)]
    first, second = (one.total_N for one in Reward(config, {}).score([talk, other], reads))
    assert first.tolist() == second[::-1].tolist()
    assert first[0] != first[1]
    many = conversation(*(f"word {i}" for i in range(4001)))
    table = read(*[0.0] * 2000)
    (drawn,) = (one.total_N for one in Reward(config, {}).score([many], [table]))
    assert drawn.mean() == pytest.approx(0, abs=0.08)
    assert drawn.std() == pytest.approx(1, abs=0.06)
