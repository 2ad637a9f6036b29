"""Checkpoints: everything that a killed run needs to go on as if it had never stopped.

    checkpoint/step_000003/adapter/     the policy's adapter
    checkpoint/step_000003/state.pt     the trainer, the random generators, the sizes of the logs,
                                        the seconds spent, and what all this depends on

One is taken after every update, when its rows are in the logs. Rows that were written after the
last checkpoint are cut off on resume and computed again, which gives the same rows.
"""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import homeostat
from homeostat.config.resume import checkpoints_in
from homeostat.errors import HomeostatError
from homeostat.files import replace_folder
from homeostat.models.adapter_files import load_adapter, save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.cache import code_digest
from homeostat.report.metrics import LOGS, MetricsLog
from homeostat.timing import Stopwatch
from homeostat.types import Stateful

KEPT = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    folder: Path
    names: Mapping[str, str]  # of the model and the trainer: a state fits no other
    trainer: Stateful
    policy: Policy
    log: MetricsLog
    watch: Stopwatch

    def save(self, step: int) -> None:
        """Keep the state after update ``step``, and of the earlier ones only the last."""
        state = {
            "step": step,
            "names": dict(self.names),
            "code": code_version(),
            "circumstances": circumstances(self.policy),
            "trainer": self.trainer.state_dict(),
            "random": random_state(),
            "log_sizes": self.log.sizes(),
            "seconds": dict(self.watch.seconds),
            "wall_s": self.watch.wall_s,
        }

        def write(fresh: Path) -> None:
            save_adapter(self.policy, fresh / "adapter")
            torch.save(state, fresh / "state.pt")

        replace_folder(self.folder / f"step_{step:06d}", write)
        for old in checkpoints_in(self.folder)[:-KEPT]:
            shutil.rmtree(old)

    def restore(self, override: bool, say: Callable[[str], None]) -> int:
        """Bring everything back to the last checkpoint, or to the start where there is none.

        Args:
            override: Accept a checkpoint that other code wrote.
            say: Told in a sentence what cannot be the same as before.

        Returns:
            The number of updates that are done.

        Raises:
            HomeostatError: The checkpoint cannot be used, or the logs do not go with it.
        """
        checkpoints = checkpoints_in(self.folder)
        if not checkpoints:
            self.log.truncate(dict.fromkeys(LOGS, 0))
            return 0
        state = read_state(checkpoints[-1])
        self._refuse_foreign(state, override)
        for name, value in circumstances(self.policy).items():
            if (before := state["circumstances"][name]) != value:
                say(f"{name} is {value} and was {before}: figures may differ in their last digits")
        load_adapter(self.policy, checkpoints[-1] / "adapter")
        self.trainer.load_state_dict(state["trainer"])
        self.log.truncate(state["log_sizes"])
        self.watch.add(state["seconds"], state["wall_s"])
        restore_random_state(state["random"])
        return int(state["step"])

    def _refuse_foreign(self, state: Mapping[str, Any], override: bool) -> None:
        was, now = (" on ".join(names.values()) for names in (state["names"], self.names))
        if was != now:
            raise HomeostatError(
                f"{self.folder} holds checkpoints of {was}, which cannot go on as {now}; model and "
                "trainer of a run stay, so start a new run for others."
            )
        if state["code"] != code_version() and not override:
            raise HomeostatError(
                f"{self.folder} was written by homeostat {state['code']} and this is "
                f"{code_version()}, so the run might not go on as it began; use that version, or "
                "set resume_override=true."
            )


def read_state(folder: Path) -> dict[str, Any]:
    """What ``state.pt`` of a checkpoint holds.

    Raises:
        HomeostatError: It cannot be read.
    """
    try:
        # Only tensors and plain values: a run folder from elsewhere cannot bring code along.
        state: dict[str, Any] = torch.load(
            folder / "state.pt", map_location="cpu", weights_only=True
        )
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise HomeostatError(
            f"{folder} is damaged and cannot be read; delete that folder, and the run goes on from "
            "the checkpoint before it."
        ) from error
    return state


def code_version() -> str:
    """Version of this package, and what its sources are."""
    return f"{homeostat.__version__} ({code_digest()[:12]})"


def circumstances(policy: Policy) -> dict[str, str]:
    """What the last digits of every figure depend on beside config and code."""
    return {
        "device": policy.device.type,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "the version of torch": str(torch.__version__),
        "the number of threads": str(torch.get_num_threads()),
    }


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The global generators of torch, numpy and Python.

    Episodes and minibatches follow from the seed and the step alone; a library or a reward term of
    the user's own may draw from these.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
