"""What happens when a sweep is over; Hydra calls it, so nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CompareBarriers(Callback):
    """Writes the comparison of a sweep's barriers into the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **_others: Any) -> None:
        """Compare every job that has measured anything."""
        from homeostat.report.barrier_comparison import write_comparison

        sweep = Path(config.hydra.sweep.dir)
        folders = sorted(path.parent.parent for path in sweep.glob("*/evals/stages.jsonl"))
        if folders:
            write_comparison(folders, sweep)
            print(f"compared {len(folders)} runs: {sweep / 'comparison.md'}")
