"""What happens before and after a sweep; Hydra calls it, so nothing heavy is imported before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from homeostat.config.evals import EvalConfig
from homeostat.config.sweep import how_to_go_on, is_left, list_jobs, read_jobs
from homeostat.errors import HomeostatError
from homeostat.report.plain import visible

failed_jobs: list[int] = []  # of the sweep that has ended: its records say so, under any launcher


class CompareRuns(Callback):
    """Lists the jobs of a sweep at its start; at its end compares its runs, and says what is left.

    Every sweep has it: conf/config.yaml.
    """

    def on_multirun_start(self, config: DictConfig, **_others: Any) -> None:
        """Write a record of every job, so that one that never starts is missed."""
        try:
            list_jobs(Path(config.hydra.sweep.dir).absolute(), jobs_of(config), sys.argv[1:])
        except HomeostatError as error:
            # Of what a callback raises, Hydra lets only the end of the process through.
            print(f"homeostat: {visible(str(error))}", file=sys.stderr)
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **_others: Any) -> None:
        """Write the comparison into the sweep's folder."""
        from homeostat.evals.evaluation import known_evaluations
        from homeostat.report.compare import compare_runs
        from homeostat.report.console import Console

        sweep = Path(config.hydra.sweep.dir).resolve()
        try:
            evaluations = known_evaluations(cast(EvalConfig, OmegaConf.to_object(config.eval)))
            compare_runs([sweep], sweep, Console(), evaluations, config.compare_baseline)
        except HomeostatError as error:
            print(f"homeostat: no comparison: {visible(str(error))}", file=sys.stderr)
        if left := how_to_go_on(sweep):
            print(visible(left))
        failed_jobs.extend(record["job"] for record in read_jobs(sweep) if is_left(record))


class CompareBarriers(Callback):
    """Writes the comparison of a sweep's barriers into ``barriers`` of the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **_others: Any) -> None:
        """Compare every job that has measured anything."""
        from homeostat.report.barrier_comparison import write_comparison

        sweep = Path(config.hydra.sweep.dir)
        folders = sorted(path.parent.parent for path in sweep.glob("*/evals/stages.jsonl"))
        if folders:
            write_comparison(folders, sweep / "barriers")
            print(f"compared {len(folders)} runs: {sweep / 'barriers' / 'comparison.md'}")


def jobs_of(config: DictConfig) -> list[list[str]]:
    """The overrides of every job of Hydra's own sweeper; empty if they are not known beforehand."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType

    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return []
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    # What a glob stands for, only the loader of configs knows.
    if any(one.value_type == ValueType.GLOB_CHOICE_SWEEP for one in parsed):
        return []
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
