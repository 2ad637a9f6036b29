"""The command line: compose, validate, run. Nothing heavy is imported before a run starts."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from homeostat.config.checks import as_object, refuse_unknown_keys
from homeostat.config.register import CONF, as_choices, options, register
from homeostat.config.resume import (
    asked_run,
    assignment,
    is_finished,
    kept_overrides,
    not_an_override,
    refuse_changes,
    resumed_arguments,
    resumed_config,
    started_in,
)
from homeostat.config.run import RunConfig
from homeostat.config.sweep import RUNNING, SKIPPED, how_to_go_on, note_job, plan_job
from homeostat.errors import HomeostatError, out_of_disk
from homeostat.report.objective import objective
from homeostat.report.plain import visible
from homeostat.report.streams import libraries_to, prepare_process
from homeostat.runs.after_sweep import failed_jobs
from homeostat.runs.interrupt import stop_on_signals

FULL_ERROR = "HYDRA_FULL_ERROR"
# Hydra's flags that take the argument behind them.
TAKES_VALUE = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"),
    *("--cfg", "-c", "--info", "-i", "--experimental-rerun"),
)
# Set beside it where it is homeostat that wants Hydra to raise: a launcher's workers inherit both.
OWN_ERROR = "HOMEOSTAT_OWN_ERROR"
WANTS_TRACEBACK = os.environ.get(FULL_ERROR) == "1" and OWN_ERROR not in os.environ
INTERRUPTED = 130
# Commands that only look, and what may stand behind them.
LOOKS = {
    "list": "one folder that runs lie in, or none for outputs",
    "show": "one run folder or the folder of a sweep",
    "check": "nothing behind it",
}

USAGE = """\
homeostat: train a language model on homeostatic intrinsic reward, without human labels.

  homeostat                                    the main job: train and evaluate the default model
  homeostat scale=smoke                        the same in seconds, to see that it works
  homeostat trainer=none                       which signals may be trusted, before training on them
  homeostat model=qwen2.5_0.5b scale=gpu12     research size on one 12 GB GPU
  homeostat -m reward=full,intrinsic_only,relational_only seed=0,1     a sweep
  homeostat resume=outputs/2026-01-31/12-00-00 continue a run that was stopped or killed
  homeostat export=outputs/2026-01-31/12-00-00 what it has trained, as one plain model
  homeostat compare=[<run>,<run>,...]          runs, or all runs of a sweep's folder, side by side
  homeostat --cfg job                          the composed config, without running
  homeostat list                               all runs in outputs/, or in another folder
  homeostat show outputs/2026-01-31/12-00-00   figures of a run or a sweep, also while it works
  homeostat check                              what this machine can do, and which preset fits
"""
AFTERWORD = """\
Any value of --cfg job can be overridden: trainer.lr=1e-4 rollout.turns=5 hydra.run.dir=my_run.
Hydra's own flags: --hydra-help."""

_failures: list[str] = []


def _job(composed: DictConfig) -> float | None:
    """One run of the composed config; a sweep goes on with its next job when one has failed.

    Returns:
        What a sweeper optimises: `homeostat.report.objective`; NaN of a job that has failed.
    """
    prepare_process()  # a launcher's worker does not come here by way of main
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    _note(job, RUNNING, folder)
    try:
        config = _checked(composed)
        status, folder = _run(config)
    except KeyboardInterrupt:
        _note(job, "interrupted", folder)
        raise
    except Exception as error:
        message = explain(error)
        _note(job, f"failed: {message}", folder)
        if WANTS_TRACEBACK:
            raise
        _failures.append(message)
        _complain(message)
        return math.nan
    _note(job, status, folder)
    if status == "interrupted":
        if job.mode == RunMode.MULTIRUN and (left := how_to_go_on(_sweep_folder(job))):
            print(visible(left))
        sys.exit(INTERRUPTED)
    return objective(config, folder) if job.mode == RunMode.MULTIRUN else None


def _checked(composed: DictConfig) -> RunConfig:
    """The composed config as its schema, with nothing in it that nobody reads."""
    config = as_object(composed)
    if not isinstance(config, RunConfig):
        raise HomeostatError("the config was composed without its schema; start with config.yaml.")
    refuse_unknown_keys(config)
    return config


def _complain(message: str) -> None:
    """An error on standard error, whatever a value from elsewhere may hold."""
    line = re.sub(r"\s*\n\s*", " ", visible(message).strip())
    print(f"homeostat: {line}", file=sys.stderr)


def _note(job: HydraConf, status: str, folder: Path) -> None:
    """Keep what a job of a sweep has come to; a single run is no job."""
    if job.mode == RunMode.MULTIRUN:
        note_job(_sweep_folder(job), job.job.num, list(job.overrides.task), status, folder)


def _sweep_folder(job: HydraConf) -> Path:
    """The folder of a sweep, which stands where it was typed if a job changes its own."""
    return Path(job.runtime.cwd, job.sweep.dir).resolve()


def _run(config: RunConfig) -> tuple[str, Path]:
    """Do what the config asks for; returns what has come of it, and the folder that holds it."""
    job = HydraConfig.get()
    folder, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    if (config.resume or config.export) and (before := started_in(folder)) is not None:
        os.chdir(before)
    if config.export or config.compare is not None:
        _look_back(config, folder, job.mode == RunMode.MULTIRUN)
        return "finished", folder
    if job.mode == RunMode.MULTIRUN:
        plan = plan_job(config, _sweep_folder(job), folder)
        if plan.done is not None:
            print(f"job {job.job.num} is done already: {visible(str(plan.done))}")
            return SKIPPED, plan.done
        if plan.resume is not None:
            folder, config = plan.resume, replace(config, resume=str(plan.resume))
            print(f"job {job.job.num} goes on from its checkpoint: {visible(str(folder))}")
    elif config.resume:
        if not refuse_changes(config, folder) and is_finished(folder):
            print(f"The run in {visible(str(folder))} is finished; nothing is left to resume.")
            return "finished", folder
        overrides = [*kept_overrides(folder), *overrides]
    from homeostat.report.console import Console
    from homeostat.runs.run import run

    with libraries_to(folder / "warnings.log"):
        return run(config, folder, Console(), overrides), folder


def _look_back(config: RunConfig, folder: Path, sweeps: bool) -> None:
    """Export or compare what earlier runs have left."""
    from homeostat.report.console import Console

    if config.compare is not None:
        if sweeps:
            raise HomeostatError("compare takes run folders, and no sweep: leave -m out.")
        from homeostat.evals.evaluation import known_evaluations
        from homeostat.report.compare import compare_runs

        given = config.compare if isinstance(config.compare, list) else [config.compare]
        paths = [Path(str(path)).expanduser() for path in given]
        evaluations = known_evaluations(config.eval)
        compare_runs(paths, folder, Console(), evaluations, config.compare_baseline)
        return
    from homeostat.runs.export import export

    refuse_changes(config, folder)
    export(config, folder, Console())


def main() -> None:
    """The console script; errors are one or two sentences unless HYDRA_FULL_ERROR=1."""
    prepare_process()
    stop_on_signals()
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(help_text())
        return
    if sys.argv[1:2] and sys.argv[1] in LOOKS:
        sys.exit(_look_at(*sys.argv[1:]))
    register()
    if WANTS_TRACEBACK:
        _start(sys.argv[1:])
        return
    # Makes Hydra raise instead of printing a traceback of its own.
    os.environ |= {FULL_ERROR: "1", OWN_ERROR: "1"}
    try:
        _start(sys.argv[1:])
    except KeyboardInterrupt:
        print("homeostat: stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _failures.append(explain(error))
        _complain(_failures[-1])
    sys.exit(1 if _failures or failed_jobs else 0)


def _look_at(what: str, *paths: str) -> int:
    """Do ``list``, ``show`` or ``check``; returns the exit code."""
    from rich.console import Console

    from homeostat.report import look, machine

    console = Console(highlight=False)
    try:
        if len(paths) > 1 or (what == "check" and paths) or (what == "show" and not paths):
            raise HomeostatError(f"homeostat {what} {' '.join(paths)}: give {LOOKS[what]}.")
        folder = Path(paths[0] if paths else "outputs").expanduser()
        if what != "check" and not folder.is_dir():
            raise HomeostatError(f"{folder}: there is no such folder; give {LOOKS[what]}.")
        if what == "check":
            machine.check(console)
        else:
            (look.list_runs if what == "list" else look.show)(folder, console)
    except (HomeostatError, OSError) as error:
        _complain(explain(error))
        return 1
    return 0


def _start(arguments: Sequence[str]) -> None:
    """Let Hydra compose the config and do its jobs; a run that goes on brings its own config."""
    arguments = as_choices(flags_first([at_home(one) for one in arguments]))
    asked, name = asked_run(arguments), "config"
    if asked is not None:
        arguments, name = resumed_arguments(arguments, *asked), "resumed"
        kept = resumed_config(CONF / "config.yaml", *asked, arguments)
        ConfigStore.instance().store(name, kept)
    sys.argv[1:] = arguments
    # Hydra 1.4 says what 1.5 will ask for; both hold for the callbacks of conf/ and for 1.3.
    for known in ("The version_base parameter", r"hydra\.utils\.instantiate\(\) resolved"):
        warnings.filterwarnings("ignore", known)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(_job)()


def at_home(argument: str) -> str:
    """An override whose value begins in the home folder; shells expand that in bare words only."""
    key, _, value = argument.partition("=")
    return assignment(key, Path(value).expanduser()) if value.startswith("~/") else argument


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The command line in the order that Hydra reads: it takes no flag between overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        is_value = bool(flags) and flags[-1] in TAKES_VALUE
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
    return [*flags, *overrides]


def help_text() -> str:
    """Usage and every option of every group; Hydra's own listing takes seconds to compose."""
    listed = "\n".join(f"  {name:<11}{', '.join(names)}" for name, names in options().items())
    return f"{USAGE}\nGroups, chosen with group=option:\n{listed}\n\n{AFTERWORD}"


def explain(error: BaseException) -> str:
    """One or two sentences about an error: the value, what is allowed, the fix."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config(error)
    if isinstance(error, HomeostatError):
        return str(error)
    full = out_of_disk(error)  # which torch, safetensors and numpy report as errors of their own
    if isinstance(error, OSError) or full:
        where = f" ({name})" if (name := getattr(error, "filename", None)) else ""
        what = "No space left on device" if full else getattr(error, "strerror", None) or error
        return (
            f"{what}{where}. Free some space or choose a folder that you may write to, with "
            "hydra.run.dir=<folder>."
        )
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, AssertionError) and "Unexpected type for root" in str(error):
        return (
            "an override names a key below one that is null in this run, such as signals.affect "
            "where signals has no affect; leave it out. See homeostat --cfg job."
        )
    return (
        f"{type(error).__name__}: {error}. This should not happen; run again with {FULL_ERROR}=1 "
        "for the traceback."
    )


def _explain_config(error: BaseException) -> str:
    """Hydra's and OmegaConf's own message, with the key in front and without their layout."""
    if isinstance(error, OverrideParseException):
        return not_an_override(error.override)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{name} is no option of {group}; choose one of {', '.join(error.options)}."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = str(error) if cause is None else f"{error}\n{cause}"
    override = re.match(r"Could not override '([^']+)'", text)
    if override and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _explain_unknown_key(cause)
    if entry := re.search(r"merging override (\S+?)=.*dict is not a subclass", text, re.S):
        return (
            f"{entry[1]} cannot be added by an override, which changes only what homeostat --cfg "
            "job shows; write it into an option of your own, in a folder that --config-dir names."
        )
    if absent := re.search(r"Could not (?:load|find) '(\w+)/([^']+)'", text):
        known = options().get(absent[1], [])
        return f"{absent[2]} is no option of {absent[1]}; choose one of {', '.join(known)}."
    if left_out := re.search(r"missing (?:a|\d+) required.* arguments?: (.+)", text):
        return f"no run can do without {left_out[1]}; give a value in place of leaving it out."
    key = re.search(r"full_key: (\S+)", text)
    lines = [line.strip() for line in text.splitlines()]
    kept = [
        line for line in lines if line and not re.match(r"(full_key|object_type|reference)", line)
    ]
    message = " ".join(dict.fromkeys(kept))
    named = f"{key.group(1)}: " if key and key.group(1) not in message else ""
    return f"{named}{message}{'' if message.endswith('.') else '.'} See homeostat --cfg job."


def _explain_unknown_key(cause: ConfigAttributeError | ConfigKeyError) -> str:
    """Which keys stand where an override named one that is not there."""
    key = str(cause.full_key)
    path = key.rpartition(".")[0]
    if not (known := ", ".join(map(str, cause.parent_node or ()))):
        return f"{key} is no key of this run, and {path} has none; add it with +{key}=<value>."
    where = f" of {path}" if path else ""
    return f"{key} is no key of this run; the keys{where} are {known}."


if __name__ == "__main__":
    main()
