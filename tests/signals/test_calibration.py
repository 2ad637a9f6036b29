from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from configs import intrinsic_config, signals_config

from homeostat.models.adapters import Policy
from homeostat.signals.calibration import Calibration, calibrate
from homeostat.signals.reader import SignalReader
from homeostat.types import (
    Conversation,
    Episode,
    Progress,
    Reading,
    SignalTable,
    TokenStream,
    Trace,
    silent,
)

NAN = float("nan")


def slow_quantile(values: Sequence[float], share: float) -> float:
    """Between the two sorted values that enclose the share, linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def with_norms(*norms: list[float]) -> Trace:
    n = len(norms)
    return Trace(
        turn_R=np.ones(n, dtype=np.int64),
        logprob_R=np.zeros(n),
        entropy_R=np.zeros(n),
        ref_logprob_R=np.zeros(n),
        kl_R=np.zeros(n),
        certainty_R=np.zeros(n),
        value_R=None,
        norm_RL=np.array(norms),
        user_turns=(),
        hidden_ref=np.zeros((0, 1, 3)),
        hidden_policy=np.zeros((0, 1, 3)),
    )


def episodes(reader: SignalReader, talks: Sequence[Conversation]) -> list[Episode]:
    return [Episode(0, "", talk, reader.policy.encode(talk)) for talk in talks]


class FixedReader(SignalReader):
    """Reads two signals of five turns that are written down here."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, signals_config(), None)
        self.names = ("entropy", "boredom")
        self.adapter_on: list[bool] = []
        self.norms_when_read: list[float] = []

    def trace(
        self,
        conversations: Sequence[Conversation],
        critic: object = None,
        progress: Progress = silent,
        streams: Sequence[TokenStream] | None = None,
    ) -> list[Trace]:
        assert critic is None
        assert streams is not None
        self.adapter_on.append(self.policy.adapter_on)
        progress(len(conversations), len(conversations))
        return [with_norms([1.0, 10.0], [3.0, 20.0]), with_norms([5.0, 60.0])]

    def read(self, talk: Conversation, trace: Trace) -> Reading:
        assert talk.turns
        assert self.base_norms is not None
        self.norms_when_read = self.base_norms.tolist()
        values = np.array([[4.0, NAN], [1.0, 0.5], [2.0, NAN], [5.0, 0.1], [3.0, 0.2]])
        mine = values[:3] if len(trace.turn_R) == 2 else values[3:]
        table = SignalTable(self.names, mine, tuple(range(1, 2 * len(mine), 2)))
        nobody = np.zeros((0, 0))
        return Reading(trace, table, nobody, nobody)


def test_median_and_spread_by_hand() -> None:
    calibration = Calibration(
        {"entropy": (0.0, 1.0, 2.5, 4.0, 9.0)}, {"entropy": 40}, {"entropy": [2.5] * 40}, np.ones(1)
    )
    assert calibration.median("entropy") == 2.5
    assert calibration.spread("entropy") == pytest.approx(3 / 1.349)


def test_calibration_of_values_by_hand() -> None:
    """Eleven values, so that every quantile but the outer ones lies between two of them."""
    values = {"entropy": [float(x) for x in (7, 3, 0, 10, 1, 9, 2, 8, 4, 6, 5)], "boredom": [0.25]}
    found = Calibration.of(values, [1.0, 2.0])
    assert found.quantiles["entropy"] == pytest.approx((0.5, 2.5, 5.0, 7.5, 9.5))
    assert found.quantiles["boredom"] == (0.25,) * 5
    assert found.n == {"entropy": 11, "boredom": 1}
    assert found.values == values
    assert found.base_norms.tolist() == [1.0, 2.0]
    assert found.base_norms.dtype == np.float64
    assert found.spread("entropy") == pytest.approx(5 / 1.349)
    assert found.spread("boredom") == 0.0


def test_signal_that_is_never_there_has_no_quantiles() -> None:
    found = Calibration.of({"boredom": [], "entropy": [2.0]}, np.ones(1))
    assert (found.n, found.values["boredom"]) == ({"boredom": 0, "entropy": 1}, [])
    assert len(found.quantiles["boredom"]) == 5
    assert all(math.isnan(x) for x in found.quantiles["boredom"])
    assert math.isnan(found.median("boredom"))
    assert math.isnan(found.spread("boredom"))
    assert found.median("entropy") == 2.0


def test_calibration_survives_json() -> None:
    """The cache keeps values and base norms; everything else follows from them."""
    found = Calibration.of({"entropy": [0.1, 1 / 3, 2.0], "boredom": []}, [1 / 7])
    values, norms = json.loads(json.dumps([found.values, found.base_norms.tolist()]))
    again = Calibration.of(values, norms)
    assert again.quantiles["entropy"] == found.quantiles["entropy"]
    assert again.base_norms.tolist() == found.base_norms.tolist()
    assert again.n == found.n


def test_calibration_by_hand(
    make_policy: Callable[..., Policy], talk: Callable[..., Conversation]
) -> None:
    """Entropy 1..5; boredom 0.1, 0.2, 0.5 where there is any."""
    reader, told = FixedReader(make_policy()), []

    def progress(done: int, total: int, tokens: int = 0) -> None:
        told.append((done, total, tokens))

    calibration, readings = calibrate(reader, episodes(reader, [talk("a", "b", "c")] * 2), progress)
    assert calibration.quantiles["entropy"] == pytest.approx((1.2, 2.0, 3.0, 4.0, 4.8))
    assert calibration.quantiles["boredom"] == pytest.approx((0.11, 0.15, 0.2, 0.35, 0.47))
    assert calibration.n == {"entropy": 5, "boredom": 3}
    assert calibration.values == {"entropy": [4, 1, 2, 5, 3], "boredom": [0.5, 0.1, 0.2]}
    assert calibration.median("entropy") == 3
    assert calibration.spread("entropy") == pytest.approx(2 / 1.349)
    assert calibration.spread("boredom") == pytest.approx(0.2 / 1.349)
    assert [r.signals.names for r in readings] == [("entropy", "boredom")] * 2
    assert told == [(2, 2, 0)]


def test_base_norms_are_means_over_tokens_and_set_before_reading(
    make_policy: Callable[..., Policy], talk: Callable[..., Conversation]
) -> None:
    reader = FixedReader(make_policy())
    calibration, _ = calibrate(reader, episodes(reader, [talk("a", "b", "c")] * 2))
    assert calibration.base_norms.tolist() == reader.norms_when_read == [3.0, 30.0]
    assert reader.adapter_on == [False]
    assert reader.policy.adapter_on


def test_trained_policy_gives_the_set_points_of_the_base(
    make_policy: Callable[..., Policy],
    stir: Callable[[Policy], None],
    talk: Callable[..., Conversation],
) -> None:
    talks = [talk("hi", "one two", "so?", "no no no", "bye"), talk("a", "b c d", "e", ended=False)]
    config = signals_config(intrinsic=intrinsic_config())
    found = []
    for stirred in (False, True):
        policy = make_policy()
        if stirred:
            stir(policy)
        reader = SignalReader(policy, config, None)
        found.append(calibrate(reader, episodes(reader, talks)))
    (fresh, readings), (trained, _) = found
    for name in config.names:
        column = [x for reading in readings for x in reading.signals.column(name).tolist()]
        expected = [slow_quantile(column, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
        assert fresh.quantiles[name] == pytest.approx(expected)
        assert trained.quantiles[name] == pytest.approx(fresh.quantiles[name], rel=1e-4)
        assert fresh.n[name] == 3
    assert np.allclose(trained.base_norms, fresh.base_norms)
    assert not any(math.isnan(x) for x in fresh.quantiles["activation_norm"])
