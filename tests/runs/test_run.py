"""What a run decides between its stages; whole runs are in test_cli.py."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console as RichConsole

from homeostat.config.register import build
from homeostat.config.run import MemoryConfig, RunConfig
from homeostat.config.signals import AFFECTS, INTRINSIC_SIGNALS
from homeostat.errors import HomeostatError
from homeostat.evals.headroom import Headroom
from homeostat.evals.homeostasis import Homeostasis
from homeostat.models.adapters import Policy
from homeostat.models.placement import Placement
from homeostat.report.console import Console
from homeostat.report.metrics import MetricsLog
from homeostat.reward.compose import Reward
from homeostat.reward.valence import SetPoint
from homeostat.runs import perceive as run_signals
from homeostat.runs.context import Run
from homeostat.runs.homeostasis import untrained_arms
from homeostat.runs.interrupt import Interrupt
from homeostat.runs.perceive import (
    allowed_set_points,
    base_episodes,
    readable,
    vague,
    watch_probes,
)
from homeostat.runs.work import check_memory
from homeostat.signals.calibration import Calibration
from homeostat.signals.probing.corpus import Corpus
from homeostat.signals.probing.perception import Perception
from homeostat.signals.probing.probes import AffectProbes
from homeostat.signals.probing.validation import ProbeReport
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.types import Bots

Make = Callable[..., RunConfig]


@pytest.fixture
def console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(RichConsole(file=stream, width=200, highlight=False)), stream


def make_run(config: RunConfig, folder: Path, console: Console) -> Run:
    """A run that mirrors nothing."""
    log = MetricsLog(folder, None, console.say)
    placement = Placement(torch.device("cpu"), torch.float32, "as asked for")
    return Run(config, folder, (), placement, console, Stopwatch(), log, Interrupt())


def perception(**verdicts: str) -> Perception:
    one = ProbeReport(
        layer=1,
        pooling="mean",
        regularisation=0.1,
        validation_auroc={},
        auroc=0.5,
        ci95=None,
        n=1,
        n_positive=0,
        brier=0.2,
        brier_base_rate=0.2,
        reliability=[],
        controls={},
        heldout_auroc=None,
        heldout=None,
        reason="so it is",
    )
    reports = {name: replace(one, verdict=verdict) for name, verdict in verdicts.items()}
    return Perception(AffectProbes({}, "m", "c"), reports, Corpus((), "d", "c"))


WEIGHTED = set(INTRINSIC_SIGNALS) - {"self_certainty", "self_perplexity"}
FOUND = {"sentiment": "weak", "curiosity": "trusted", "frustration": "unusable", "boredom": "weak"}


@pytest.mark.parametrize(
    ("require", "kept"),
    [
        ("trusted", ["curiosity"]),
        ("weak", ["sentiment", "curiosity", "boredom"]),
        ("any", ["sentiment", "curiosity", "frustration", "boredom"]),
    ],
)
def test_affects_below_the_required_verdict_are_left_out(
    composed: Make, console: tuple[Console, io.StringIO], require: str, kept: list[str]
) -> None:
    config = composed("bot=curious", f"signals.affect.require={require}")
    found = allowed_set_points(config, perception(**FOUND), console[0])
    weighted = [name for name in config.reward.set_points if name in WEIGHTED]
    assert list(found) == [*weighted, *kept]
    assert found == {name: config.reward.set_points[name] for name in found}
    said = [line.split(maxsplit=1)[1] for line in console[1].getvalue().splitlines()]
    assert said == [
        f"{name} is left out of the reward: it "
        + (f"is {FOUND[name]} (so it is)" if name in FOUND else "has no probe")
        for name in AFFECTS
        if name not in kept
    ]


def test_affect_without_weight_is_not_mentioned(
    composed: Make, console: tuple[Console, io.StringIO]
) -> None:
    config = composed("bot=curious", "reward=intrinsic_only", "signals.affect.require=trusted")
    found = allowed_set_points(config, perception(**FOUND), console[0])
    assert not set(found) & set(AFFECTS)
    assert console[1].getvalue() == ""


def test_run_without_affects_keeps_every_weighted_set_point(
    composed: Make, console: tuple[Console, io.StringIO]
) -> None:
    config = composed("bot=curious", "signals=[intrinsic]", "reward=intrinsic_only")
    found = allowed_set_points(config, None, console[0])
    assert set(found) == WEIGHTED


def test_reward_with_nothing_left_is_refused(
    composed: Make, console: tuple[Console, io.StringIO]
) -> None:
    config = composed("bot=curious", "reward=relational_only")
    with pytest.raises(HomeostatError) as caught:
        allowed_set_points(config, perception(boredom="unusable"), console[0])
    assert str(caught.value) == (
        "signals.affect.require=weak leaves no signal to reward; lower it, or add intrinsic "
        "signals with reward=full."
    )
    config.reward.terms = {"mine": {"_target_": "a.b"}}
    assert allowed_set_points(config, perception(boredom="unusable"), console[0]) == {}


def test_a_run_that_cannot_fit_is_refused_before_it_trains(
    composed: Make,
    make_policy: Callable[..., Policy],
    console: tuple[Console, io.StringIO],
    tmp_path: Path,
) -> None:
    """The estimate is shown and kept all the same, so that the user sees what to lower."""
    config = composed("model=tiny_random", "scale=smoke", "memory.limit_gb=0.001")
    policy = make_policy()
    with pytest.raises(HomeostatError, match=r"memory\.limit_gb is 0\.001; .*trainer\."):
        check_memory(make_run(config, tmp_path, console[0]), policy, 60)
    assert "activations" in console[1].getvalue()
    kept = json.loads((tmp_path / "memory.json").read_text())
    assert kept["limit"] == 1_000_000 < kept["total"]
    roomy = replace(config, memory=MemoryConfig(limit_gb=4.0))
    found = check_memory(make_run(roomy, tmp_path, console[0]), policy, 60)
    assert found == json.loads((tmp_path / "memory.json").read_text())["total"]


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (
            {"auroc_off": 0.912, "auroc_on": 0.75, "distance": 0.2, "stale": True},
            "the probe of boredom has gone stale: AUROC 0.912 → 0.750, its reading moved by 0.200",
        ),
        (
            {"auroc_off": None, "auroc_on": None, "distance": 0.2, "stale": True},
            "its reading moved by 0.20",
        ),
        ({"auroc_off": 0.9, "auroc_on": 0.9, "distance": 0.0, "stale": False}, ""),
    ],
)
def test_stale_probes_are_named(
    composed: Make,
    make_policy: Callable[..., Policy],
    console: tuple[Console, io.StringIO],
    monkeypatch: pytest.MonkeyPatch,
    figures: dict[str, Any],
    said: str,
) -> None:
    """Also where the test messages that were read lack a class, so that there is no AUROC."""
    monkeypatch.setattr(run_signals, "measure_staleness", lambda *_: {"boredom": figures})
    config = composed("bot=curious")
    found = watch_probes(
        make_run(config, Path(), console[0]), make_policy(), perception(boredom="weak")
    )
    assert found == {"boredom": figures}
    lines = [line for line in console[1].getvalue().splitlines() if "staleness of" not in line]
    assert len(lines) == figures["stale"]
    assert said in "".join(lines)


def test_run_without_probes_has_none_that_could_go_stale(
    composed: Make, make_policy: Callable[..., Policy], console: tuple[Console, io.StringIO]
) -> None:
    config = composed("bot=curious", "signals=[intrinsic]", "reward=intrinsic_only")
    assert watch_probes(make_run(config, Path(), console[0]), make_policy(), None) is None
    assert console[1].getvalue() == ""


def test_the_base_plays_its_held_out_episodes_once(
    make_policy: Callable[..., Policy],
    composed: Make,
    tmp_path: Path,
    cache: Path,
    console: tuple[Console, io.StringIO],
) -> None:
    del cache
    small = ("model=tiny_random", "scale=smoke", "signals=[intrinsic]", "reward=intrinsic_only")
    policy, played = make_policy(), []

    def rows_of(
        *more: str, tolerance: float = 1.0, seed: int = 0, how: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        config = composed(*small, *more)
        run = make_run(config, tmp_path, console[0])
        reader = SignalReader(policy, config.signals, None)
        evaluation = Homeostasis(
            config.eval,
            policy,
            build(config.bot, Bots),
            reader,
            Reward(config.reward, {"entropy": SetPoint(1.0, 2.0, tolerance)}),
            config.rollout,
        )

        def play_arm() -> list[dict[str, Any]]:
            played.append("base")
            return [{"arm": "base", "metrics": {"valence": -0.1 * seed, "missing": None}}]

        return base_episodes(run, None, evaluation, ["base", how or {}], play_arm)

    assert (
        rows_of()
        == rows_of(seed=7)
        == [{"arm": "base", "metrics": {"valence": 0.0, "missing": None}}]
    )
    assert played == ["base"]
    for number, changed in enumerate(
        ("eval.episodes=2", "reward.mode=reduction", "rollout.turns=1", "signals.cache=false"), 2
    ):
        rows_of(changed)
        assert len(played) == number
    rows_of(tolerance=0.5)
    assert len(played) == 6
    term = f"+reward.terms.own={{_target_: {__name__}.make_run}}"
    rows_of(term)
    rows_of(term)  # what an own term says may change without a trace
    assert len(played) == 8
    rows_of(how={"system": "Be calm."})
    rows_of(how={"system": "Be kind."})
    assert len(played) == 10
    rows_of("eval.bots=curious")
    rows_of("eval.bots=bored")
    rows_of("eval.bots=bored", seed=7)
    assert len(played) == 12, "once for each population"
    own = ("eval.bots=bored", "eval.bots._target_=my_bots.Bots")
    rows_of(*own)
    rows_of(*own)  # what own users say may change, too
    assert len(played) == 14


def test_arms_without_training_are_those_that_are_asked_for(composed: Make) -> None:
    asked = {
        (): {"cool": {"temperature": 0.7}},
        ("eval.cool_temperature=null",): {},
        ("eval.prompted=Hi", "eval.cool_temperature=0.5"): {
            "cool": {"temperature": 0.5},
            "prompted": {"system": "Hi"},
        },
    }
    for overrides, arms in asked.items():
        assert untrained_arms(composed(*overrides).eval) == arms


# --- what can be read and what is fixed well enough ---------------------------------------------

LOOP = {
    "sentiment": {
        "within_r": 0.7,
        "ci95": (0.6, 0.8),
        "n_seeds": 48,
        "slope": 0.5,
        "offset": -0.1,
    },
    "boredom": {
        "within_r": 0.3,
        "ci95": (0.1, 0.4),
        "n_seeds": 48,
        "slope": -0.1,
        "offset": 0.0,
    },
}
AFFECT_POINTS = {name: SetPoint(0.2, 0.1, 0.2) for name in LOOP} | {
    "entropy": SetPoint(0.2, 2.0, 0.5)
}


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ((), ["sentiment", "entropy"]),
        (("signals.affect.require=trusted",), ["sentiment", "entropy"]),
        (("signals.affect.require=any",), ["sentiment", "boredom", "entropy"]),
        (("reward=true_affect",), ["sentiment", "boredom", "entropy"]),
    ],
)
def test_an_affect_that_cannot_be_read_is_left_out(
    composed: Make,
    console: tuple[Console, io.StringIO],
    tmp_path: Path,
    overrides: tuple[str, ...],
    kept: list[str],
) -> None:
    run = make_run(composed("bot=curious", *overrides), tmp_path, console[0])
    assert list(readable(run, AFFECT_POINTS, Headroom({}, LOOP))) == kept
    assert list(readable(run, AFFECT_POINTS, None)) == list(AFFECT_POINTS)
    said = "boredom is left out of the reward: r = 0.30 within replies to the same words, from 0.10"
    assert (said in console[1].getvalue()) == ("boredom" not in kept)


def test_felt_levels_lie_where_they_are_read(
    composed: Make, console: tuple[Console, io.StringIO], tmp_path: Path
) -> None:
    config = composed("bot=curious", "reward.levels=felt", "signals.affect.require=any")
    run = make_run(config, tmp_path, console[0])
    points = readable(run, AFFECT_POINTS, Headroom({}, LOOP))
    assert list(points) == ["sentiment", "entropy"]
    assert (points["sentiment"].setpoint, points["sentiment"].tolerance) == pytest.approx(
        (-0.05, 0.1)
    )
    assert points["entropy"] == AFFECT_POINTS["entropy"]
    said = "boredom is left out of the reward: its reading does not rise with what is felt"
    assert said in console[1].getvalue()


def test_a_reward_that_cannot_be_read_at_all_is_refused(
    composed: Make, console: tuple[Console, io.StringIO], tmp_path: Path
) -> None:
    run = make_run(composed("bot=curious", "reward=relational_only"), tmp_path, console[0])
    with pytest.raises(HomeostatError, match="none of them can be read off what these users say"):
        readable(run, {"boredom": SetPoint(0.2, 0.1, 0.2)}, Headroom({}, LOOP))


def test_a_set_point_that_the_sample_does_not_fix_is_named() -> None:
    rng = np.random.default_rng(0)
    values = {"few": rng.normal(5, 1, 6).tolist(), "many": rng.normal(5, 1, 600).tolist()}
    calibration = Calibration.of(values, [1.0])
    points = {name: SetPoint(1.0, 5.0, 0.2, automatic=("setpoint", "tolerance")) for name in values}
    (said,) = vague(calibration, points)
    assert said.startswith("the automatic set point of few may lie anywhere from ")
    assert vague(calibration, {"few": SetPoint(1.0, 5.0, 0.2)}) == [], "it was stated"
