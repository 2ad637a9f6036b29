from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from configs import affect_config, intrinsic_config, signals_config

from homeostat.models.adapters import Policy
from homeostat.signals.probing.probes import AffectProbes, Probe
from homeostat.signals.reader import SignalReader, episode_record
from homeostat.types import Conversation, Episode, Reading, TokenStream, Turn

AFFECT_NAMES = ("sentiment", "boredom")
LAYER_OF = {"sentiment": 2, "boredom": 1}
PROBE_LAYERS = (1, 2)
BASE_NORMS = np.array([2.0, 3.0, 4.0])


def made_probes(names: Sequence[str] = AFFECT_NAMES) -> AffectProbes:
    rng = np.random.default_rng(0)
    bias = {"sentiment": 0.2, "boredom": -0.1}
    made = {
        name: Probe(LAYER_OF[name], "both", 0.1, rng.normal(size=64) / 8, bias[name], {})
        for name in AFFECT_NAMES
    }
    return AffectProbes({name: made[name] for name in names}, "fingerprint", "made up")


def by_hand(hidden: np.ndarray) -> list[list[float]]:
    """The readings of pooled states [U, P, E], number by number."""
    probes = made_probes().probes
    rows = []
    for turn in hidden.tolist():
        row = []
        for name in AFFECT_NAMES:
            state, weight = turn[PROBE_LAYERS.index(LAYER_OF[name])], probes[name].weight.tolist()
            logit = sum(x * w for x, w in zip(state, weight, strict=True)) + probes[name].bias
            p = 1 / (1 + math.exp(-logit))
            row.append(2 * p - 1 if name == "sentiment" else p)
        rows.append(row)
    return rows


def make_reader(policy: Policy, perception: str = "reference") -> SignalReader:
    affect = affect_config(names=list(AFFECT_NAMES), perception=perception)
    reader = SignalReader(
        policy, signals_config(intrinsic=intrinsic_config(), affect=affect), made_probes()
    )
    reader.base_norms = BASE_NORMS
    return reader


def measure(reader: SignalReader, talks: Sequence[Conversation]) -> list[Reading]:
    return reader.measure([as_episode(reader.policy, talk) for talk in talks])


def as_episode(policy: Policy, talk: Conversation, seed: int = 0, bot: str = "") -> Episode:
    return Episode(seed, bot, talk, policy.encode(talk))


def columns(readings: Sequence[Reading], name: str) -> list[float]:
    """One signal of every assistant turn of every conversation."""
    return [x for reading in readings for x in reading.signals.column(name).tolist()]


def values(readings: Sequence[Reading]) -> np.ndarray:
    return np.concatenate([reading.signals.values for reading in readings])


@pytest.fixture
def talks(talk: Callable[..., Conversation]) -> list[Conversation]:
    """Two answered replies; one answered and one that nobody answers."""
    return [talk("hi", "yo", "what?", "er", "bye"), talk("so", "aaaaaaaaaa", "I am bored", "no")]


@pytest.fixture
def stirred(make_policy: Callable[..., Policy], stir: Callable[[Policy], None]) -> Policy:
    policy = make_policy()
    stir(policy)
    return policy


def test_one_row_per_assistant_turn(stirred: Policy, talks: list[Conversation]) -> None:
    reader = make_reader(stirred)
    first, second = (reading.signals for reading in measure(reader, talks))
    assert first.names == second.names == reader.names
    assert first.names == (
        "entropy",
        "self_perplexity",
        "base_perplexity",
        "activation_norm",
        "repetition",
        "self_certainty",
        "sentiment",
        "boredom",
    )
    assert first.values.shape == second.values.shape == (2, 8)
    assert first.turns == second.turns == (1, 3)


@pytest.mark.parametrize("perception", ["reference", "policy"])
def test_relational_signals_come_from_the_user_turn_that_answers(
    stirred: Policy, talks: list[Conversation], perception: str
) -> None:
    readings = measure(make_reader(stirred, perception), talks)
    field = {"reference": "hidden_ref", "policy": "hidden_policy"}[perception]
    first, second = (by_hand(getattr(reading.trace, field)) for reading in readings)
    assert readings[0].perceived.tolist() == [pytest.approx(row) for row in first]
    assert readings[1].perceived.tolist() == [pytest.approx(row) for row in second]
    for at, name in enumerate(AFFECT_NAMES):
        expected = [first[1][at], first[2][at], second[1][at], float("nan")]
        assert columns(readings, name) == pytest.approx(expected, nan_ok=True)


def test_perception_makes_a_difference(stirred: Policy, talks: list[Conversation]) -> None:
    reference, policy = (measure(make_reader(stirred, p), talks) for p in ("reference", "policy"))
    assert np.abs(reference[0].perceived - policy[0].perceived).max() > 0.001
    assert np.array_equal(reference[0].drift, policy[0].drift)


def test_reply_that_nobody_answers_keeps_its_intrinsic_signals(
    stirred: Policy, talks: list[Conversation]
) -> None:
    found = values(measure(make_reader(stirred), talks))
    assert np.isnan(found[3, 6:]).all()
    assert np.isfinite(found[3, :6]).all()
    assert np.isfinite(found[:3]).all()


def test_intrinsic_signals_are_those_of_the_turns_own_tokens(
    stirred: Policy, talks: list[Conversation]
) -> None:
    readings = measure(make_reader(stirred), talks)
    rows = [(reading, row) for reading in readings for row in range(2)]
    for reading, row in rows:
        found, table, turn = reading.trace, reading.signals, reading.signals.turns[row]
        own = [r for r, of in enumerate(found.turn_R) if of == turn]
        entropy = sum(found.entropy_R[r] for r in own) / len(own)
        surprise = -sum(found.logprob_R[r] for r in own) / len(own)
        base_surprise = -sum(found.ref_logprob_R[r] for r in own) / len(own)
        norms = [sum(found.norm_RL[r][at] for r in own) / len(own) for at in range(3)]
        ratio = sum(n / b for n, b in zip(norms, BASE_NORMS, strict=True)) / 3
        assert table.values[row, :4].tolist() == pytest.approx(
            [entropy, math.exp(surprise), math.exp(base_surprise), ratio], rel=1e-5
        )
        certainty = sum(found.certainty_R[r] for r in own) / len(own)
        assert table.column("self_certainty")[row] == pytest.approx(certainty, rel=1e-5)
    assert columns(readings, "repetition") == [0.0, 0.0, 0.9, 0.0]


def test_drift_of_a_fresh_adapter_is_0(
    make_policy: Callable[..., Policy], talks: list[Conversation]
) -> None:
    drifts = [reading.drift.tolist() for reading in measure(make_reader(make_policy()), talks)]
    assert drifts == [[[0.0, 0.0]] * 3, [[0.0, 0.0]] * 2]


def test_drift_is_the_distance_of_both_readings_of_every_user_turn(
    stirred: Policy, talks: list[Conversation]
) -> None:
    readings = measure(make_reader(stirred), talks)
    pairs = [
        pair
        for found in (reading.trace for reading in readings)
        for pair in zip(by_hand(found.hidden_ref), by_hand(found.hidden_policy), strict=True)
    ]
    drift = np.concatenate([reading.drift for reading in readings])
    assert len(pairs) == len(drift) == 5
    for at in range(len(AFFECT_NAMES)):
        expected = [abs(own[at] - ref[at]) for ref, own in pairs]
        assert drift[:, at].tolist() == pytest.approx(expected, rel=1e-4)
        assert drift[:, at].min() > 0


def test_nothing_is_read_from_no_conversations(stirred: Policy) -> None:
    assert make_reader(stirred).measure([]) == []


def test_reader_wants_base_norms_first(stirred: Policy, talks: list[Conversation]) -> None:
    reader = make_reader(stirred)
    reader.base_norms = None
    with pytest.raises(ValueError, match="calibrate the reader"):
        measure(reader, talks)


def test_only_affect(stirred: Policy, talks: list[Conversation]) -> None:
    affect = affect_config(names=list(AFFECT_NAMES))
    reader = SignalReader(stirred, signals_config(affect=affect), made_probes())
    readings = measure(reader, talks)
    assert reader.affects == readings[0].signals.names == AFFECT_NAMES
    whole = values(measure(make_reader(stirred), talks))
    assert np.array_equal(values(readings), whole[:, 6:], equal_nan=True)


def test_names_are_those_of_the_probes_that_exist(
    stirred: Policy, talks: list[Conversation]
) -> None:
    """The config names an affect that no corpus labelled, so there is no probe of it."""
    affect = affect_config(names=["curiosity", "sentiment", "boredom"])
    config = signals_config(intrinsic=intrinsic_config(names=["repetition"]), affect=affect)
    reader = SignalReader(stirred, config, made_probes(["boredom"]))
    reader.base_norms = BASE_NORMS
    readings = measure(reader, talks)
    assert reader.names == readings[0].signals.names == ("repetition", "boredom")
    assert reader.affects == ("boredom",)
    assert [reading.drift.shape for reading in readings] == [(3, 1), (2, 1)]
    assert reader.probe_layers == (1,)
    whole = measure(make_reader(stirred), talks)
    for name in reader.names:
        assert columns(readings, name) == pytest.approx(columns(whole, name), nan_ok=True)
    assert [reading.perceived[:, 0].tolist() for reading in readings] == [
        pytest.approx(reading.perceived[:, 1].tolist()) for reading in whole
    ]


def test_without_any_probe_nothing_is_perceived(stirred: Policy, talks: list[Conversation]) -> None:
    config = signals_config(
        intrinsic=intrinsic_config(), affect=affect_config(names=list(AFFECT_NAMES))
    )
    reader = SignalReader(stirred, config, AffectProbes({}, "fingerprint", "made up"))
    reader.base_norms = BASE_NORMS
    readings = measure(reader, talks)
    assert reader.affects == reader.probe_layers == ()
    assert reader.names == tuple(intrinsic_config().names)
    assert [reading.perceived.shape for reading in readings] == [(3, 0), (2, 0)]
    assert [reading.drift.shape for reading in readings] == [(3, 0), (2, 0)]


def only_intrinsic(policy: Policy) -> SignalReader:
    reader = SignalReader(policy, signals_config(intrinsic=intrinsic_config()), None)
    reader.base_norms = BASE_NORMS
    return reader


def test_only_intrinsic(stirred: Policy, talks: list[Conversation]) -> None:
    reader = only_intrinsic(stirred)
    readings = measure(reader, talks)
    assert reader.affects == ()
    assert readings[0].drift.size == 0
    expected = values(measure(make_reader(stirred), talks))[:, :6]
    assert np.allclose(values(readings), expected)


def episodes(talks: list[Conversation]) -> list[Episode]:
    """The conversations as episodes; the last turn of the first knows its affect."""
    said = list(talks[0].turns)
    said[-1] = Turn("user", said[-1].text, affect={"boredom": 0.9}, move="goodbye")
    nothing = TokenStream([], [], [])
    first = Episode(7, "curious", Conversation(tuple(said)), nothing)
    return [first, Episode(8, "bored", talks[1], nothing)]


def test_episode_record(stirred: Policy, talks: list[Conversation]) -> None:
    reader = make_reader(stirred)
    readings = measure(reader, talks)
    first, second = (
        episode_record(episode, reading, reader.affects)
        for episode, reading in zip(episodes(talks), readings, strict=True)
    )
    assert json.loads(json.dumps(first)) == first
    assert (first["seed"], first["bot"]) == (7, "curious")
    assert [(t["role"], t["text"]) for t in first["turns"]] == [
        ("user", "hi"),
        ("assistant", "yo"),
        ("user", "what?"),
        ("assistant", "er"),
        ("user", "bye"),
    ]
    assert first["turns"][4] == {
        "role": "user",
        "text": "bye",
        "move": "goodbye",
        "affect": {"boredom": 0.9},
        "perceived": dict(zip(AFFECT_NAMES, readings[0].perceived[2].tolist(), strict=True)),
    }
    assert first["turns"][2]["affect"] is None
    assert first["turns"][3]["signals"] == dict(
        zip(reader.names, readings[0].signals.values[1].tolist(), strict=True)
    )
    # the answer's perceived affect is the reply's relational signal
    assert first["turns"][3]["signals"]["boredom"] == first["turns"][4]["perceived"]["boredom"]
    assert second["turns"][1]["signals"]["repetition"] == 0.9
    assert math.isnan(second["turns"][3]["signals"]["boredom"])


def test_episode_record_without_affects(stirred: Policy, talks: list[Conversation]) -> None:
    reader = only_intrinsic(stirred)
    readings = measure(reader, talks)
    record = episode_record(episodes(talks)[0], readings[0], reader.affects)
    assert record["turns"][0]["perceived"] == {}
    assert list(record["turns"][1]["signals"]) == list(reader.names)
