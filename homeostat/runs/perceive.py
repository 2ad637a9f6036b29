"""What a run learns about its base before training: probes, set points, which signals see failures.

Like `homeostat.runs.work`, which calls it, it evaluates and saves; nothing else does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from homeostat.config.reward import RewardConfig, SetPointConfig
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.evals.failures import Failures, best_signals
from homeostat.evals.headroom import (
    Headroom,
    Shown,
    as_read,
    headroom_of,
    loop_verdicts,
    show_replies,
)
from homeostat.evals.homeostasis import Homeostasis, perception_validity
from homeostat.evals.staleness import measure_staleness, stale
from homeostat.files import write_text
from homeostat.models.adapters import Policy
from homeostat.models.cache import identity, remembered
from homeostat.report.console import Console
from homeostat.report.metrics import finite, write_rows
from homeostat.report.plain import number
from homeostat.reward.valence import SetPoint, resolve_one
from homeostat.rollout.episodes import calibration_seeds, play
from homeostat.runs.context import Run
from homeostat.signals.calibration import QUANTILES, Calibration, calibrate
from homeostat.signals.probing.perception import (
    ALLOWED,
    Perception,
    obtain_perception,
    what_is_measured,
)
from homeostat.signals.reader import SignalReader, episode_record
from homeostat.types import Bots


def perceive(run: Run, policy: Policy) -> Perception | None:
    """The affect probes and what they are worth; None for a run without them."""
    if run.config.signals.affect is None:
        return None
    with run.section("affect probes", "probes") as progress:
        perception = obtain_perception(policy, run.config.signals, progress)
    perception.save(run.folder / "probes")
    for notice in perception.notices:
        run.console.say(notice)
    return perception


def allowed_set_points(
    config: RunConfig, perception: Perception | None, console: Console
) -> dict[str, SetPointConfig]:
    """The set points that the probes' verdicts allow; says which are left out.

    Raises:
        HomeostatError: Nothing is left to reward, and the run is to train.
    """
    points = {n: p for n, p in config.reward.set_points.items() if p.weight > 0}
    affect = config.signals.affect
    if affect is None or perception is None:
        return points
    allowed = perception.allowed(affect.require)
    left_out = [name for name in points if name in AFFECTS and name not in allowed]
    for name in left_out:
        report = perception.reports.get(name)
        why = f"is {report.verdict} ({report.reason})" if report else "has no probe"
        console.say(f"{name} is left out of the reward: it {why}")
    kept = {name: point for name, point in points.items() if name not in left_out}
    if not kept and not config.reward.terms and config.trainer.learns:
        raise HomeostatError(
            f"signals.affect.require={affect.require} leaves no signal to reward; lower it, or "
            "add intrinsic signals with reward=full."
        )
    return kept


def measure_base(
    run: Run, reader: SignalReader, perception: Perception | None, bots: Bots
) -> tuple[Calibration, dict[str, Any]]:
    """The base model's own conversations: its signals, and whether it perceives the bots."""
    policy, config = reader.policy, run.config

    def compute() -> dict[str, Any]:
        seeds = calibration_seeds(config.signals.calibration_episodes)
        temperature = config.signals.calibration_temperature
        section = run.section("set points: episodes", "generate")
        with policy.reference(), section as progress:
            episodes = play(policy, bots, seeds, config.rollout, temperature, progress)
        with run.section("set points: signals", "trace") as progress:
            shown, readings = calibrate(reader, episodes, progress)
        measured = zip(episodes, readings, strict=True)
        records = [episode_record(*pair, reader.affects) for pair in measured]
        return {
            "values": shown.values,
            "base_norms": shown.base_norms.tolist(),
            "loop": perception_validity(records),
        }

    digest = perception.corpus.digest if perception else None
    base = _remembered(config, policy, digest, "set_points", compute)
    calibration = Calibration.of(base["values"], base["base_norms"])
    reader.base_norms = calibration.base_norms
    return calibration, base["loop"]


def base_episodes(
    run: Run,
    perception: Perception | None,
    evaluation: Homeostasis,
    arm: Sequence[Any],
    play_arm: Callable[[], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Rows of the held-out episodes that the base has played, which every run compares itself with.

    Kept between runs that read and reward alike, unless code of the user's own has a say in them.

    Args:
        run: Its config and folder.
        perception: The probes that read.
        evaluation: What scores the episodes.
        arm: Its name, and how it is played.
        play_arm: Plays and scores them.
    """
    config = run.config
    terms, users = config.reward.terms, config.held_out_bot
    packaged = all(str(term["_target_"]).startswith("homeostat.") for term in terms.values())
    if not (packaged and users.follows_from_config):
        return play_arm()
    held = (evaluation.reward.set_points, evaluation.relational)
    depends_on = [
        perception.corpus.digest if perception else None,
        *arm,
        asdict(users),
        config.eval.episodes,
        evaluation.reward.mode,
        terms,
        [{name: asdict(point) for name, point in points.items()} for points in held],
    ]
    policy = evaluation.policy
    rows: list[dict[str, Any]] = _remembered(config, policy, depends_on, "held_out", play_arm)
    return rows


def relational_points(
    config: RewardConfig, reader: SignalReader, calibration: Calibration
) -> dict[str, SetPoint]:
    """Set points of all affects that are read, equally weighted, whatever the reward holds."""
    affects = [n for n in AFFECTS if n in reader.affects and n in config.set_points]
    points = {name: resolve_one(name, config.set_points[name], calibration) for name in affects}
    return {name: replace(point, weight=1 / len(points)) for name, point in points.items()}


def measure_reward_headroom(
    run: Run,
    reader: SignalReader,
    perception: Perception | None,
    set_points: Mapping[str, SetPoint],
    bots: Bots,
) -> Headroom | None:
    """What of the reward a reply decides; writes headroom.json and probes/loop.json.

    None where nothing is to be measured.

    Raises:
        HomeostatError: That is where felt levels would be read off it.
    """
    config = run.config
    users, replies = config.eval.headroom_users, config.eval.headroom_replies
    felt = config.reward.levels == "felt"
    if not users:
        if felt:
            raise HomeostatError(
                "reward.levels=felt needs the headroom of the run, which says where a felt level "
                "is read; set eval.headroom_users above 0, or use reward.levels=read."
            )
        return None

    def compute() -> dict[str, Any]:
        with run.section("headroom of the reward", "headroom") as progress:
            shown = show_replies(reader, bots, config.rollout, users, replies, progress)
        return dict(finite(shown.record))

    depends_on = [perception.corpus.digest if perception else None, users, replies]
    shown = Shown.of(_remembered(config, reader.policy, depends_on, "headroom", compute))
    headroom = headroom_of(shown, set_points, felt)
    headroom = Headroom(finite(headroom.terms), headroom.loop)
    write_text(run.folder / "headroom.json", json.dumps(headroom.terms, indent=2))
    if perception is not None:
        write_text(run.folder / "probes" / "loop.json", json.dumps(headroom.loop, indent=2))
    return headroom


def readable(
    run: Run, set_points: Mapping[str, SetPoint], headroom: Headroom | None
) -> dict[str, SetPoint]:
    """The set points whose signal can be read off what users say; says which are left out.

    Those of felt levels are moved to where they are read.

    Raises:
        HomeostatError: Nothing is left to reward, and the run is to train.
    """
    config = run.config
    affect = config.signals.affect
    # With what users truly feel as the reward, or another's, it does not matter what can be read.
    if headroom is None or affect is None or config.reward.affect == "felt":
        return dict(set_points)
    allowed = ALLOWED[affect.require]
    verdicts = loop_verdicts(headroom.loop)
    left_out = {n: why for n, (verdict, why) in verdicts.items() if verdict not in allowed}
    placed = as_read(set_points, headroom.loop) if config.reward.levels == "felt" else set_points
    for name in set_points.keys() - placed.keys():
        left_out[name] = "its reading does not rise with what is felt"
    for name in set_points:
        if name in left_out:
            run.console.say(f"{name} is left out of the reward: {left_out[name]}")
    kept = {name: point for name, point in placed.items() if name not in left_out}
    if not kept and not config.reward.terms and config.trainer.learns:
        raise HomeostatError(
            f"signals.affect.require={affect.require} leaves no signal to reward, since none of "
            "them can be read off what these users say; lower it, or add intrinsic signals with "
            "reward=full."
        )
    return kept


def validate_intrinsic(
    run: Run, reader: SignalReader, bots: Bots, calibration: Calibration
) -> dict[str, Any] | None:
    """Failures made on the model, and which signals see them; None without intrinsic signals."""
    config = run.config
    if config.signals.intrinsic is None:
        return None
    points = {
        name: resolve_one(name, config.reward.set_points[name], calibration)
        for name in config.signals.intrinsic.names
        if name in config.reward.set_points and calibration.n[name]
    }
    failures = Failures(
        reader, bots, config.signals.calibration_temperature, config.rollout.max_new_tokens
    )

    def compute() -> list[dict[str, Any]]:
        with run.section("failures: replies", "failures") as progress:
            return failures.measure(config.signals.validation_replies, points, progress)

    judged = {name: asdict(point) for name, point in points.items()}
    rows = _remembered(config, reader.policy, judged, "failures", compute)
    write_rows(run.folder / "evals" / "failures.jsonl", rows)
    seen = best_signals(rows)
    run.console.failures(seen)
    return seen


def watch_probes(run: Run, policy: Policy, perception: Perception | None) -> dict[str, Any] | None:
    """Whether the probes have gone stale under training; None for a run without probes."""
    affect_config = run.config.signals.affect
    if perception is None or affect_config is None:
        return None
    with run.section("staleness of the probes", "evaluate") as progress:
        staleness = measure_staleness(policy, perception, affect_config, progress)
    for affect in stale(staleness):
        probe = staleness[affect]
        run.console.say(
            f"the probe of {affect} has gone stale: AUROC {number(probe['auroc_off'])} → "
            f"{number(probe['auroc_on'])}, its reading moved by {number(probe['distance'])}"
        )
    return staleness


def _remembered(config: RunConfig, policy: Policy, depends_on: Any, kind: str, compute: Any) -> Any:
    """What ``compute`` finds out about the base model, from the cache where nothing has changed.

    The user's own code, and a model elsewhere that plays users, may change without a trace in the
    config: what follows from them is not kept.
    """
    traceable = not config.signals.own and config.bot.follows_from_config
    if not (traceable and config.signals.cache):
        return compute()
    recipe = [
        identity(policy),
        depends_on,
        what_is_measured(config.signals),
        *(asdict(part) for part in (config.bot, config.rollout)),
    ]
    return remembered(kind, recipe, compute)


def vague(calibration: Calibration, set_points: Mapping[str, SetPoint]) -> list[str]:
    """Sentences about automatic set points that so small a sample does not fix.

    One is vague where its 95% interval is wider than the tolerance to either side of it: then the
    sample could as well have put it where the signal now counts as off.
    """
    said = []
    for name, point in set_points.items():
        found = calibration.uncertainty(name, point.transform) if point.automatic else {}
        if "setpoint" not in point.automatic or not found:
            continue
        low, high = found["setpoint_ci95"]
        wide = math.log(high / low) if point.transform == "log" else high - low
        if wide > 2 * point.tolerance:
            said.append(
                f"the automatic set point of {name} may lie anywhere from {number(low)} to "
                f"{number(high)}, wider than its tolerance to either side; measure it on more "
                "conversations (signals.calibration_episodes), or state it."
            )
    return said


def save_calibration(
    folder: Path, calibration: Calibration, reward: RewardConfig, set_points: Mapping[str, SetPoint]
) -> None:
    """Write set_points.json: what the base model showed, and what the reward uses."""
    signals = {
        name: {
            "n": calibration.n[name],
            "quantiles": dict(zip(map(str, QUANTILES), q, strict=True)),
            "values": calibration.values[name],
        }
        for name, q in calibration.quantiles.items()
    }
    used = {}
    for name, point in set_points.items():
        used[name] = asdict(point) | {"reason": reward.set_points[name].reason}
        if point.automatic:
            used[name] |= calibration.uncertainty(name, point.transform)
    norms = calibration.base_norms.tolist()
    about = {"signals": signals, "set_points": used, "base_norms": norms}
    write_text(folder / "set_points.json", json.dumps(finite(about), indent=2))
