"""What to do when a run has failed for want of memory."""

from __future__ import annotations

from functools import reduce

from homeostat.config.trainers import TrainerConfig
from homeostat.errors import out_of_memory


def advise_memory(trainer: TrainerConfig, error: BaseException) -> str | None:
    """What to do about an error that says that memory ran out; None for any other error."""
    said = out_of_memory(error)
    if said is None:
        return None
    advice = "choose a smaller model, or dtype=bfloat16"
    if isinstance(error, MemoryError):  # numpy's, which holds no model: resampled means
        steers = trainer.wing == "steering"
        key = f"{'trainer.stages' if steers else 'eval'}.bootstrap_samples"
        advice = f"lower {key}, or free memory that other programs hold"
    elif trainer.micro_batch_key is not None:
        key = trainer.micro_batch_key
        value = reduce(getattr, key.split(".")[1:], trainer)
        advice = f"lower {key} (now {value}) or rollout.max_new_tokens, or {advice}"
    return f"out of memory: {said.rstrip('.')}. To mend it, {advice}."
