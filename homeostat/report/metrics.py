"""Metrics, episodes and timing as JSON lines; wandb is a mirror of them."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from homeostat.config.run import WandbConfig
from homeostat.config.sweep import JOBS
from homeostat.errors import HomeostatError
from homeostat.files import naming_full_disk, write_text, writing

LOGS = ("metrics.jsonl", "episodes.jsonl", "timing.jsonl")
WANDB_ID = "wandb/id.txt"


class MetricsLog:
    """Appends to the three logs of a run, and mirrors metrics and timing to wandb.

    Seconds have a file of their own, so that the other two are the same whenever the run is.
    """

    def __init__(self, folder: Path, config: WandbConfig, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._wandb = _start_wandb(folder, config, settings)

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        episodes: Iterable[Mapping[str, Any]],
        timing: Mapping[str, float],
    ) -> None:
        """Log one update; ``timing`` is seconds, keyed ``time/<part>_s``."""
        append_rows(self._folder / "metrics.jsonl", [{"step": step, **metrics}])
        append_rows(self._folder / "episodes.jsonl", episodes)
        append_rows(self._folder / "timing.jsonl", [{"step": step, **timing}])
        if self._wandb is not None:
            self._wandb.log({**metrics, **timing}, step=step)

    def sizes(self) -> dict[str, int]:
        """Bytes in each log; 0 for one that was never written to."""
        paths = {name: self._folder / name for name in LOGS}
        return {name: p.stat().st_size if p.exists() else 0 for name, p in paths.items()}

    def truncate(self, sizes: Mapping[str, int]) -> None:
        """Cut every log back to an earlier size in bytes; a log of size 0 is removed.

        Raises:
            HomeostatError: A log is shorter than that.
        """
        for name, written in self.sizes().items():
            path, size = self._folder / name, sizes[name]
            if written < size:
                raise HomeostatError(
                    f"{path} has {written} bytes, but its checkpoint was taken at {size}; put the "
                    "lost rows back, or start the run anew."
                )
            if size:
                os.truncate(path, size)
            else:
                path.unlink(missing_ok=True)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish the mirror; the files are complete after every step."""
        if self._wandb is not None:
            self._wandb.summary.update(finite(dict(summary)))
            self._wandb.finish()
            self._wandb = None


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines in a single write, so that a kill never leaves half of a batch of rows."""
    text = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
    with naming_full_disk(path.parent), path.open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            _write_all(stream, text.encode("utf-8"))
        except OSError:
            stream.truncate(before)
            raise
        os.fsync(stream.fileno())


def _write_all(stream: FileIO, data: bytes) -> None:
    """All of it, though a disk that is nearly full takes only a part at once."""
    while data:
        data = data[stream.write(data) :]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as scratch:
        append_rows(scratch, rows)


def finite(value: Any) -> Any:
    """The value with NaN and infinities as None: valid JSON, and missing is missing."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _kept_id(path: Path) -> str:
    """The id of a run folder's mirror, the same however often the run is resumed."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()


def _start_wandb(folder: Path, config: WandbConfig, settings: Mapping[str, Any]) -> Any:
    if config.mode == "disabled":
        return None
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    sweep = folder.resolve().parent
    try:
        with naming_full_disk(folder):
            return wandb.init(
                mode="online" if config.mode == "online" else "offline",
                project=config.project,
                name=config.name,
                id=_kept_id(folder / WANDB_ID),
                resume="allow" if config.mode == "online" else None,
                group=sweep.name if (sweep / JOBS).is_dir() else None,
                job_type=str(settings.get("trainer", {}).get("name", "")) or None,
                dir=str(folder),
                config=dict(settings),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
    except UnicodeEncodeError as error:
        raise HomeostatError(
            f"wandb.mode={config.mode} takes no folder such as {folder}, whose name cannot be read "
            "as UTF-8 here; choose another folder, set PYTHONUTF8=1, or use wandb.mode=disabled."
        ) from error
    except (wandb.Error, OSError) as error:
        raise HomeostatError(
            f"wandb.mode={config.mode} did not start ({str(error).splitlines()[0]}); run "
            "`wandb login`, or use wandb.mode=offline or wandb.mode=disabled."
        ) from error
