"""The first wing: probes and set points before training, held-out episodes before and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from homeostat.bots.conversations import FileBots
from homeostat.bots.endpoint import Endpoint
from homeostat.bots.model import ModelBots, describe_counts
from homeostat.config.bots import BotConfig, FileBotConfig, ModelBotConfig
from homeostat.config.evals import BASE, COOL, PROMPTED, TRAINED, EvalConfig
from homeostat.config.register import build, checked
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.evals.headroom import Headroom
from homeostat.evals.homeostasis import Homeostasis, perception_validity
from homeostat.models.adapters import Policy
from homeostat.report.metrics import write_rows
from homeostat.reward.compose import Reward
from homeostat.reward.valence import resolve
from homeostat.rollout.sampled_user import user_model
from homeostat.runs.checkpoint import seed_generators
from homeostat.runs.context import Run
from homeostat.runs.memory import episode_tokens
from homeostat.runs.perceive import (
    allowed_set_points,
    base_episodes,
    measure_base,
    measure_reward_headroom,
    perceive,
    readable,
    relational_points,
    save_calibration,
    vague,
    validate_intrinsic,
    watch_probes,
)
from homeostat.signals.calibration import Calibration
from homeostat.signals.probing.corpus import load_corpus
from homeostat.signals.probing.perception import Perception
from homeostat.signals.reader import SignalReader
from homeostat.trainers.base import World
from homeostat.types import Bot, Bots, EvalResult, StepResult, Trainer


def untrained_arms(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """The arms that are played before training, by how each differs from the base."""
    asked: dict[str, dict[str, Any]] = {
        COOL: {"temperature": config.cool_temperature},
        PROMPTED: {"system": config.prompted},
    }
    return {arm: how for arm, how in asked.items() if None not in how.values()}


def users_of(config: BotConfig, policy: Policy) -> Bots:
    """A population of users.

    Args:
        config: Its class and options.
        policy: Its base plays users whose model that is.

    Raises:
        HomeostatError: Its class cannot be made, or spawns no user.
    """
    bots = build(config, Bots)
    if isinstance(bots, ModelBots):
        bots.model = user_model(bots.config, policy)
    checked(bots.spawn(0), Bot, f"spawn of _target_={config._target_}")
    return bots


class RewardWing:
    """What a run of the first founding system measures; see `homeostat.runs.context.Wing`."""

    ended: str | None = None  # a reward never ends a run early

    @staticmethod
    def check_files(config: RunConfig) -> None:
        """See `Wing.check_files`: the probes' corpora, users' openings, an endpoint's key."""
        affect = config.signals.affect
        if affect is not None:
            for path in filter(None, (affect.corpus, affect.heldout)):
                load_corpus(path, affect.names)
        for users in (config.bot, config.eval.bots):
            if isinstance(users, ModelBotConfig) and users.source == "endpoint":
                Endpoint(users)
            if isinstance(users, FileBotConfig):
                FileBots(users)

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run = run
        self.policy = policy
        self.bots = users_of(run.config.bot, policy)
        tested = run.config.eval.bots
        self.held_out_bots = self.bots if tested is None else users_of(tested, policy)
        self.perception: Perception | None = None
        self.loop: Mapping[str, Any] | None = None
        self.allowed: tuple[str, ...] = ()
        self.comparison: EvalResult | None = None
        self.beside: dict[str, EvalResult] = {}  # what needs no training, against the base
        self.failures: Mapping[str, Any] | None = None
        self.staleness: Mapping[str, Any] | None = None
        self.headroom: Headroom | None = None

    def sequence_tokens(self) -> int:
        """See `Wing.sequence_tokens`."""
        return episode_tokens(self.policy, self.run.config.rollout, self.bots)

    def prepare(self) -> Trainer | None:
        """Fit probes, calibrate set points, play the held-out episodes as the base; the trainer."""
        run, config = self.run, self.run.config
        self.perception = perceive(run, self.policy)
        probes = self.perception.probes if self.perception else None
        self.reader = SignalReader(self.policy, config.signals, probes)
        self.calibration, self.loop = measure_base(run, self.reader, self.perception, self.bots)
        # What the cache has spared so far must not shift what is drawn from here on.
        seed_generators(config.seed)
        set_points = self._set_points(self.calibration)
        if run.stop.requested:
            return None
        self.headroom = measure_reward_headroom(
            run, self.reader, self.perception, set_points, self.bots
        )
        seed_generators(config.seed)
        if run.stop.requested:
            return None
        set_points = readable(run, set_points, self.headroom)
        self.allowed = tuple(name for name in AFFECTS if name in set_points)
        save_calibration(run.folder, self.calibration, config.reward, set_points)
        for notice in vague(self.calibration, set_points):
            run.console.say(notice)
        reward = Reward(config.reward, set_points)
        if config.trainer.learns:
            self._measure_before(Reward(replace(config.reward, affect="read"), set_points))
        world = World(self.policy, self.bots, self.reader, reward, config.rollout)
        return build(config.trainer, Trainer, world=world, seed=config.seed, watch=run.watch)

    def _set_points(self, calibration: Calibration) -> dict[str, Any]:
        config = self.run.config
        points = allowed_set_points(config, self.perception, self.run.console)
        return resolve(points, calibration)

    def _measure_before(self, reward: Reward) -> None:
        config = self.run.config
        self.evaluation = build(
            config.eval,
            Homeostasis,
            policy=self.policy,
            bots=self.held_out_bots,
            reader=self.reader,
            reward=reward,
            rollout=config.rollout,
            relational=relational_points(config.reward, self.reader, self.calibration),
        )
        self.before = self._as_base(BASE)
        self._compare([])
        for arm, how in untrained_arms(config.eval).items():
            rows = self._as_base(arm, **how)
            write_rows(self.run.folder / "evals" / f"{arm}.jsonl", rows)
            self.beside[arm] = self.evaluation.compare(self.before, rows)
        self.loop = perception_validity(self.before)

    def _as_base(self, arm: str, **how: Any) -> list[dict[str, Any]]:
        play = partial(self._play, arm, **how)
        return base_episodes(self.run, self.perception, self.evaluation, [arm, how], play)

    def start(self) -> None:
        """See `Wing.start`; the held-out episodes of the base are played already."""

    def after_step(self, result: StepResult) -> None:
        """See `Wing.after_step`; an update is measured by its own episodes."""

    def report_step(self, result: StepResult, seconds: float) -> None:
        """One line about an update."""
        total = self.run.config.trainer.max_steps
        self.run.console.update(result.step, total, result.metrics, seconds)

    def finish(self) -> None:
        """Play the held-out episodes as what was learnt; without training, validate the signals."""
        run = self.run
        if run.stop.requested:
            return
        if not run.config.trainer.learns:
            self.failures = validate_intrinsic(run, self.reader, self.bots, self.calibration)
            return
        self._compare(self._play(TRAINED))
        self.staleness = watch_probes(run, self.policy, self.perception)

    def _play(self, arm: str, **how: Any) -> list[dict[str, Any]]:
        context = nullcontext() if arm == TRAINED else self.policy.reference()
        with context, self.run.section(f"held-out episodes, {arm}", "evaluate") as progress:
            return self.evaluation.measure(arm, playing=progress, **how)

    def _compare(self, after: list[dict[str, Any]]) -> None:
        """Write the rows of both arms and keep their comparison."""
        self.comparison = self.evaluation.compare(self.before, after)
        path = self.run.folder / "evals" / f"{self.comparison.name}.jsonl"
        write_rows(path, self.comparison.rows)

    @property
    def user_reports(self) -> Counter[str]:
        """What users whom a model plays have told so far; empty without such users."""
        told: Counter[str] = Counter()
        for bots in {id(bots): bots for bots in (self.bots, self.held_out_bots)}.values():
            if isinstance(bots, ModelBots):
                told.update(bots.counts)
        return told

    def summary(self) -> dict[str, Any]:
        """See `Wing.summary`."""
        reports = self.perception.reports if self.perception else {}
        metrics = _as_records(self.comparison) or {}
        return {
            "probe_auroc": {name: report.auroc for name, report in reports.items()},
            "probe_verdict": {name: report.verdict for name, report in reports.items()},
            "rewarded_affects": self.allowed,
            "perception": self.loop,
            "staleness": self.staleness,
            "failures": self.failures,
            "headroom": self.headroom
            and {"terms": self.headroom.terms, "loop": self.headroom.loop},
            "cool_temperature": self.run.config.eval.cool_temperature,
            "cool": _as_records(self.beside.get(COOL)),
            "prompted": _as_records(self.beside.get(PROMPTED)),
            "eval": metrics,
            **({"user_reports": dict(self.user_reports)} if self.user_reports else {}),
        }

    def report(self) -> None:
        """Tables of what was found, for the console."""
        if self.user_reports:
            self.run.console.say(describe_counts(self.user_reports))
        if self.comparison is not None:
            self.run.console.comparison(self.comparison.metrics)
        if not self.run.config.trainer.learns and self.perception is not None:
            self.run.console.probe_verdicts(self.perception.reports)


def _as_records(result: EvalResult | None) -> dict[str, Any] | None:
    """Every figure of a comparison, JSON-ready; None where nothing was measured."""
    if result is None:
        return None
    return {name: asdict(estimate) for name, estimate in result.metrics.items()}
