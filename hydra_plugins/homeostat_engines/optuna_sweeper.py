"""``hydra/sweeper=optuna``: the next jobs of a sweep are chosen by what the earlier ones returned.

A key of the sweep is searched where its value is a choice (``a,b``), a range (``range(1,9)``) or an
interval (``interval(1e-5,1e-2)``, with ``tag(log, ...)`` on a logarithmic scale). The study lies in
a journal file in the sweep's folder, so that the same command with that folder goes on: trials
that are done are kept; one that was under way, or failed, is done again, and its run resumed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from homeostat.config.sweep import forget_job
from homeostat.files import write_text

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

MISSING = 'hydra/sweeper=optuna needs Optuna: pip install "homeostat[optuna]".'
DIRECTIONS = ("maximize", "minimize")
JOURNAL, RESULT = "optuna.journal", "optuna.json"
AGAIN = "again"  # mark of a trial that takes up one that was left half done


class OptunaSweeper(Sweeper):
    """Asks Optuna's tree-structured Parzen estimator for the overrides of every job."""

    def __init__(
        self, trials: int, at_once: int, direction: str, seed: int, params: DictConfig | None
    ) -> None:
        """How much is searched.

        Args:
            trials: Jobs in all, those of earlier tries included.
            at_once: Jobs that are launched together; the next are chosen when all are done.
            direction: ``maximize`` or ``minimize`` what a job returns.
            seed: Of the choices.
            params: Overrides of the sweep that an experiment brings.

        Raises:
            ValueError: A number is below 1, or there is no such direction.
        """
        for name, value in (("trials", trials), ("at_once", at_once)):
            if value < 1:
                raise ValueError(f"hydra.sweeper.{name}={value} must be at least 1.")
        if direction not in DIRECTIONS:
            raise ValueError(
                f"hydra.sweeper.direction={direction} must be one of {', '.join(DIRECTIONS)}."
            )
        self.trials, self.at_once, self.direction = trials, at_once, direction
        self.seed = seed
        self.params: dict[str, Any] = {str(k): v for k, v in (params or {}).items()}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See `hydra.plugins.sweeper.Sweeper`."""
        self.hydra_context, self.config, self.folder = hydra_context, config, config.hydra.sweep.dir
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launch so many trials; the best stands in ``optuna.json`` of the sweep's folder.

        Raises:
            ValueError: Optuna is not installed, nothing is searched, or something that cannot be.
        """
        try:
            import optuna
        except ImportError as error:
            raise ValueError(MISSING) from error
        given = [f"{key}={value}" for key, value in self.params.items()]
        overrides = OverridesParser.create().parse_overrides([*given, *arguments])
        searched = [o for o in overrides if o.is_sweep_override()]
        space = {str(o.get_key_element()): distribution(o) for o in searched}
        if not space:
            raise ValueError(
                "hydra/sweeper=optuna has nothing to search; give a key several values, such as "
                "'trainer.lr=tag(log, interval(1e-5, 1e-3))'."
            )
        fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        study = self._study(optuna, folder)
        for number in take_up(study):
            forget_job(folder, number)
        while (left := self.trials - ended(study)) > 0:
            self._batch(study, space, fixed, min(left, self.at_once))
            write_result(study, folder / RESULT)
        print(f"{ended(study)} trials: {folder / RESULT}")

    def _study(self, optuna: Any, folder: Path) -> Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        study: Study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="homeostat",
            direction=self.direction,
            load_if_exists=True,
        )
        # With the same seed again an earlier try's first choices would be made once more.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        return study

    def _batch(
        self, study: Study, space: dict[str, BaseDistribution], fixed: list[str], count: int
    ) -> None:
        """Choose some jobs, launch them, and tell what they returned."""
        trials = [study.ask(space) for _ in range(count)]
        jobs = [[*fixed, *(f"{key}={trial.params[key]}" for key in space)] for trial in trials]
        self.validate_batch_is_legal(jobs)
        # What was chosen twice is one run: the second waits, and finds it done.
        distinct = len({tuple(job) for job in jobs}) == len(jobs)
        size = len(jobs) if distinct else 1
        # Optuna numbers trials one after the other, also those that are done again.
        for i in range(0, len(jobs), size):
            returns = self.launcher.launch(jobs[i : i + size], initial_job_idx=trials[i].number)
            for trial, done in zip(trials[i : i + size], returns, strict=True):
                tell(study, trial, done)


def distribution(override: Override) -> BaseDistribution:
    """What Optuna may choose a key's value from.

    Raises:
        ValueError: It is a sweep that Optuna cannot search.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution(
            [str(one) for one in override.sweep_iterator(transformer=Transformer.encode)]
        )
    log = "log" in value.tags if isinstance(value, RangeSweep | IntervalSweep) else False
    if isinstance(value, RangeSweep):
        start, stop, step = value.start or 0, value.stop or 0, value.step
        last = start + (math.ceil((stop - start) / step) - 1) * step  # Hydra leaves the stop out
        if log or (stop - start) * step <= 0:
            raise ValueError(
                f"{override.input_line}: a range must hold a value and cannot be on a logarithmic "
                "scale; use tag(log, interval(...))."
            )
        low, high, width = min(start, last), max(start, last), abs(step)
        if isinstance(start, int) and isinstance(step, int):
            return IntDistribution(int(low), int(high), step=int(width))
        return FloatDistribution(low, high, step=width)
    if isinstance(value, IntervalSweep):
        start, end = value.start or 0, value.end or 0
        if isinstance(start, int) and isinstance(
            end, int
        ):  # int(interval(...)); plain ones are not
            return IntDistribution(start, end, log=log)
        return FloatDistribution(float(start), float(end), log=log)
    raise ValueError(
        f"{override.input_line}: Optuna searches choices (a,b), range(...) and interval(...)."
    )


def take_up(study: Study) -> list[int]:
    """Have what an earlier try left half done, or failed at, be asked for again with its values.

    Returns:
        The numbers that it had.
    """
    from optuna.trial import TrialState

    states = (TrialState.RUNNING, TrialState.FAIL)
    taken_up = {trial.user_attrs.get(AGAIN) for trial in study.get_trials(deepcopy=False)}
    left = [t for t in study.get_trials(states=states) if t.number not in taken_up]
    for trial in left:
        study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial.number for trial in left]


def tell(study: Study, trial: Trial, done: JobReturn) -> None:
    """What a job has come to: its figure, or that it has none."""
    from optuna.trial import TrialState

    value = done.return_value if done.status == JobStatus.COMPLETED else None
    if isinstance(value, int | float) and math.isfinite(value):
        study.tell(trial, float(value))
    else:
        study.tell(trial, state=TrialState.FAIL)


def ended(study: Study) -> int:
    """How many trials have come to an end; one that was done again counts once."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state.is_finished()]
    return len(done) - sum(AGAIN in trial.user_attrs for trial in trials)


def write_result(study: Study, path: Path) -> None:
    """Every trial with what it was given and what it returned, the best first; None = nothing."""
    rows = [
        {"job": t.number, "value": t.value if t.values else None, "overrides": t.params}
        for t in study.get_trials(deepcopy=False)
        if t.state.is_finished()
    ]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    rows.sort(key=lambda row: math.inf if row["value"] is None else sign * row["value"])
    write_text(path, json.dumps({"direction": study.direction.name.lower(), "trials": rows}))
