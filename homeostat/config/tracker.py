"""Schemas of the trackers: where the figures of a run are mirrored; no torch import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from homeostat.config.checks import require, require_one_of

MODES = ("offline", "online")


@dataclass(kw_only=True)
class TrackerConfig:
    """No mirror, and what every other one has."""

    schema: ClassVar[str] = "tracker/none"
    _target_: str = "homeostat.report.trackers.NoTracker"
    name: str


@dataclass(kw_only=True)
class TensorboardConfig(TrackerConfig):
    """Event files in ``tensorboard/`` of the run folder; ``figures``: the report's, as images."""

    schema: ClassVar[str] = "tracker/tensorboard"
    _target_: str = "homeostat.report.trackers.TensorboardTracker"
    figures: bool


@dataclass(kw_only=True)
class TrackioConfig(TrackerConfig):
    """A run of a project of trackio, in trackio's own folder; null: a name of the run folder's."""

    schema: ClassVar[str] = "tracker/trackio"
    _target_: str = "homeostat.report.trackers.TrackioTracker"
    project: str
    run_name: str | None
    group: str | None

    def __post_init__(self) -> None:
        require(bool(self.project.strip()), "tracker.project is empty; give a name.")


@dataclass(kw_only=True)
class WandbConfig(TrackioConfig):
    """A run of wandb; ``offline`` needs no account and stays inside the run folder.

    ``episodes`` is a table of the held-out episodes, ``figures`` the report's as images,
    ``adapter`` what was trained as an artifact.
    """

    schema: ClassVar[str] = "tracker/wandb"
    _target_: str = "homeostat.report.trackers.WandbTracker"
    mode: str
    entity: str | None
    tags: list[str]
    notes: str | None
    episodes: bool
    figures: bool
    adapter: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("tracker.mode", self.mode, MODES)
