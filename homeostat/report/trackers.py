"""Mirrors of a run's figures: wandb, trackio, TensorBoard. The run folder stays the truth.

A tracker is told the rows of ``metrics.jsonl``, and a resumed run tells it all of them again, so
that a mirror has no gap and no double whatever a kill has cut off: each class says how it takes a
row that it has had.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from homeostat.config.rows import read_rows
from homeostat.config.sweep import JOBS
from homeostat.config.tracker import TensorboardConfig, TrackerConfig, TrackioConfig, WandbConfig
from homeostat.errors import HomeostatError
from homeostat.files import naming_full_disk, write_text

Settings = Mapping[str, Any]
ID = "tracker.txt"  # of a run folder: the id of its run wherever it is mirrored
WANDB_ID = "wandb/id.txt"  # where earlier run folders have it
EPISODES = "evals/homeostasis.jsonl"


@runtime_checkable
class Tracker(Protocol):
    """A mirror of one run.

    Made with its config, ``folder`` of the run, and ``settings``: the run's whole config.
    """

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; those of a step that it has may come again."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take what the run has come to, and whatever else of its folder belongs there."""


class NoTracker:
    """No mirror."""

    def __init__(self, config: TrackerConfig, folder: Path, settings: Settings) -> None:
        """Nothing is kept."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Nothing happens."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing happens."""


class TensorboardTracker:
    """Event files in the run folder, which a resumed run writes anew."""

    def __init__(self, config: TensorboardConfig, folder: Path, settings: Settings) -> None:
        _extra("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._config, self._folder = config, folder
        events = folder / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        self._writer = SummaryWriter(str(events))
        written = json.dumps(settings, indent=1, default=str)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in written.splitlines()))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write held-out differences, and the figures."""
        for name, metric in (summary.get("eval") or {}).items():
            if metric.get("diff") is not None:
                self._writer.add_scalar(f"eval/{name}", metric["diff"], summary["steps"])
        if self._config.figures:
            from matplotlib.image import imread

            for path in figures_in(self._folder):
                self._writer.add_image(path.stem, imread(path), dataformats="HWC")
        self._writer.close()


class TrackioTracker:
    """A run in trackio's own folder; a row that is there already is passed over."""

    def __init__(self, config: TrackioConfig, folder: Path, settings: Settings) -> None:
        with _quiet():
            trackio = _extra("trackio", "trackio")
            from trackio.sqlite_storage import SQLiteStorage

            name = config.run_name or f"{folder.resolve().name}-{kept_id(folder)[:6]}"
            self._trackio = trackio
            self._run = trackio.init(
                project=config.project,
                name=name,
                group=config.group or sweep_of(folder),
                config=dict(settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            last = SQLiteStorage.get_max_step_for_run(config.project, name)
        self._last = -1 if last is None else int(last)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        if step > self._last:
            self._run.log(dict(figures), step=step)

    def finish(self, _summary: Mapping[str, Any]) -> None:
        """Wait until all rows are written."""
        with _quiet():
            self._trackio.finish()


class WandbTracker:
    """One run of wandb for one run folder, under an id that the folder keeps.

    Offline a resumed run writes its mirror anew; online wandb knows the last step that it has.
    """

    def __init__(self, config: WandbConfig, folder: Path, settings: Settings) -> None:
        self._config, self._folder = config, folder
        online = config.mode == "online"
        if not online:
            for mirror in folder.glob("wandb/offline-run-*"):
                shutil.rmtree(mirror)
        self._wandb = import_module("wandb")
        os.environ.setdefault("WANDB_SILENT", "true")
        with naming_full_disk(folder), self._naming_errors():
            self._run = self._wandb.init(
                mode=config.mode,
                project=config.project,
                entity=config.entity,
                name=config.run_name,
                id=kept_id(folder),
                resume="allow" if online else None,
                group=config.group or sweep_of(folder),
                job_type=str(settings.get("trainer", {}).get("name", "")) or None,
                tags=list(config.tags),
                notes=config.notes,
                dir=str(folder),
                config=dict(settings),
                settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
        self._next = int(self._run.step)

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        mode = f"tracker.mode={self._config.mode}"
        try:
            yield
        except UnicodeEncodeError as error:
            raise HomeostatError(
                f"{mode} takes no folder such as {self._folder}, whose name cannot be read as "
                "UTF-8 here; choose another folder, set PYTHONUTF8=1, or use tracker=none."
            ) from error
        except (self._wandb.Error, OSError, ValueError) as error:  # the last for its environment
            why = " ".join(str(error).split("\n")[:3])
            raise HomeostatError(
                f"{mode} did not start ({why}); run `wandb login`, or use tracker.mode=offline or "
                "tracker=none."
            ) from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        if step >= self._next:
            self._run.log(dict(figures), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand over summary, episodes, figures, and the adapter if it is asked for."""
        config, made = self._config, {}
        if config.episodes and (self._folder / EPISODES).is_file():
            made["episodes"] = self._episodes()
        if config.figures:
            made |= {p.stem: self._wandb.Image(str(p)) for p in figures_in(self._folder)}
        if made:
            self._run.log(made)
        adapter = self._folder / "adapters"
        if config.adapter and adapter.is_dir():
            artifact = self._wandb.Artifact(f"adapter-{self._run.id}", type="model")
            artifact.add_dir(str(adapter))
            self._run.log_artifact(artifact)
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(str(summary.get("status", "")).startswith("failed")))

    def _episodes(self) -> Any:
        """A table with a row per held-out episode."""
        table = self._wandb.Table(columns=["arm", "bot", "seed", "valence", "talk"])
        for _, row in read_rows(self._folder / EPISODES):
            talk = "\n".join(f"{turn['role']}: {turn['text']}" for turn in row["turns"])
            valence = row.get("metrics", {}).get("valence")
            table.add_data(row["arm"], row.get("bot"), row["seed"], valence, talk)
        return table


def kept_id(folder: Path) -> str:
    """The id of a run folder's mirror, the same however often the run is resumed."""
    known = next((folder / at for at in (ID, WANDB_ID) if (folder / at).is_file()), None)
    if known is None:
        known = folder / ID
        write_text(known, secrets.token_hex(8))
    return known.read_text(encoding="utf-8").strip()


def sweep_of(folder: Path) -> str | None:
    """Name of the folder of the sweep that a run belongs to."""
    sweep = folder.resolve().parent
    return sweep.name if (sweep / JOBS).is_dir() else None


def figures_in(folder: Path) -> list[Path]:
    """The figures of a run's report."""
    return sorted((folder / "figures").glob("*.png"))


def _extra(name: str, module: str) -> Any:
    """A module that an extra brings.

    Raises:
        HomeostatError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise HomeostatError(
            f"tracker={name} needs {module}: pip install 'homeostat[{name}]', or use tracker=none."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a library prints about itself off the console."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
