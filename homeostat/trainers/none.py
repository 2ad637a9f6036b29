"""No training: a run without steps, which says what its signals are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from homeostat.config.trainers import NoTrainerConfig
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.types import Footprint, Progress, StepResult, silent


class NoTrainer:
    """A trainer that has nothing to do and nothing to remember."""

    is_over = True
    coming = ""

    def __init__(
        self,
        config: NoTrainerConfig,
        *,
        world: World,
        seed: int,
        watch: Stopwatch,
        progress: Progress = silent,
    ) -> None:
        del config, world, seed, watch
        self.progress = progress
        self.notices: list[str] = []

    @classmethod
    def footprint(cls, config: NoTrainerConfig, length: int) -> Footprint:
        """Nothing has a gradient."""
        del config
        return Footprint(0, length, gradient_tokens=0, logit_copies=0, recomputes=False, adapters=0)

    def steps(self) -> Iterator[StepResult]:
        """None."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to continue."""
