"""One run from its first line to its last: its folder, its console, its summary, its report.

What it does in between is `homeostat.runs.work`. That loads the libraries that models need, which
takes seconds, so it is imported when the first line is out: up to there a run needs torch alone.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from homeostat.config.register import build
from homeostat.config.resume import resume_command
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.files import alone_in
from homeostat.models.placement import Placement, place
from homeostat.report.card import write_card
from homeostat.report.console import Console
from homeostat.report.metrics import MetricsLog
from homeostat.report.trackers import Tracker
from homeostat.runs.advice import advise_memory
from homeostat.runs.context import Run
from homeostat.runs.interrupt import Interrupt
from homeostat.runs.summary import Outcome, prepare_folder, save_summary
from homeostat.timing import Stopwatch


def run(config: RunConfig, folder: Path, console: Console, overrides: Sequence[str] = ()) -> str:
    """Do one run in ``folder``, or with ``config.resume`` what is left of the run in there.

    Args:
        config: Of the run.
        folder: Made if absent.
        console: Told how the run is getting on.
        overrides: What the config was composed from, for a later resume.

    Returns:
        ``finished``, ``interrupted``, or why it ended early; whatever was measured is in the folder
        in every case.

    Raises:
        HomeostatError: The run could not go on; ``summary.json`` then says ``failed`` and why.
    """
    _free_memory()  # what a failed job of a sweep has left behind
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        placement = place(config.device, config.dtype, folder if config.resume else None)
        prepare_folder(config, folder, overrides, placement)
        return _run_in(config, folder, console, overrides, placement)


def _run_in(
    config: RunConfig,
    folder: Path,
    console: Console,
    overrides: Sequence[str],
    placement: Placement,
) -> str:
    watch, outcome = Stopwatch(), Outcome()
    tested = "" if config.eval.bots is None else f", tested on {config.eval.bots.name}"
    console.say(
        f"{config.trainer.name} on {config.model.name}, bot {config.bot.name}{tested}, "
        f"seed {config.seed} → {folder}"
    )
    with ExitStack() as at_end:
        try:
            with Interrupt() as stop, console.heeding(stop.check):
                tracker = build(config.tracker, Tracker, folder=folder, settings=asdict(config))
                log = MetricsLog(folder, tracker, console.say)
                at_end.callback(log.close)  # when summary and figures are there
                run = Run(config, folder, tuple(overrides), placement, console, watch, log, stop)
                with watch("load"):
                    from homeostat.runs.work import work
                stop.check()  # the imports have taken seconds
                work(run, outcome)
            ended = outcome.wing.ended if outcome.wing is not None else None
            outcome.status = "interrupted" if stop.requested else ended or "finished"
        except BaseException as error:
            lacking = advise_memory(config.trainer, error)
            failed = f"failed: {lacking or error or type(error).__name__}"
            outcome.status = "interrupted" if isinstance(error, KeyboardInterrupt) else failed
            if outcome.steps:
                console.say(f"continue with {resume_command(folder)}")
            if lacking is not None:
                raise HomeostatError(lacking) from error
            raise
        finally:
            save_summary(config, outcome, watch, folder)
            _free_memory()
        with console.section("report"), watch("report"):
            from homeostat.report.html import write_report  # draws, and needs matplotlib

            write_report(folder)
            if (folder / "adapters").is_dir():
                write_card(folder, folder / "adapters")
        save_summary(config, outcome, watch, folder)
        if outcome.wing is not None and outcome.status == "finished":
            outcome.wing.report()
        console.say(f"{outcome.status}: {folder / 'report.html'}")
        if outcome.status == "interrupted":
            console.say(f"continue with {resume_command(folder)}")
        return outcome.status


def _free_memory() -> None:
    """Leave nothing behind for the next job of a sweep in the same process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
