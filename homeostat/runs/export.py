"""``homeostat export=<run folder>``: what a run has trained or measured, in the form of others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.files import replace_folder
from homeostat.models.adapter_files import load_adapter
from homeostat.models.adapters import Policy
from homeostat.models.bake import export_adapter, export_merged, verify_bake
from homeostat.models.placement import place
from homeostat.report.card import write_card
from homeostat.report.console import Console
from homeostat.report.inspect_logs import write_logs
from homeostat.runs.work import load_policy
from homeostat.timing import Stopwatch

# Largest difference of log-probability, nats, that merging may make on the tokens of `SAMPLE`.
# Half precision rounds the sum of base and adapter to its own grid.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
SAMPLE = "The harbour master closed the gate, counted the boats twice, and went home for supper."


def export(config: RunConfig, folder: Path, console: Console) -> Path:
    """Write what the run in ``folder`` has trained into ``folder/export``.

    Args:
        config: Of that run; ``export_as`` says what is written.
        folder: Of that run.
        console: Told what is going on.

    Returns:
        The new folder: a model that transformers loads, an adapter that peft loads, or logs that
        Inspect reads.

    Raises:
        HomeostatError: Nothing was trained, the adapters belong to another model, or the merged
            weights are not the stack of adapters.
    """
    out = folder / "export" / config.export_as
    if config.export_as == "inspect":
        out.parent.mkdir(exist_ok=True)
        replace_folder(out, partial(write_logs, folder, config))
        console.say(f"exported: {len(list(out.iterdir()))} logs in {out}")
        return out
    adapters = folder / "adapters"
    if not (adapters / "adapter_model.safetensors").is_file():
        raise HomeostatError(
            f"export={folder}: there are no adapters in it, so nothing was trained; give the "
            "folder of a run that has done a step."
        )
    placement = place(config.device, config.dtype, folder)
    if placement.device.type == "cpu" and config.dtype == "auto" and config.export_as == "merged":
        # Half precision would round away what is small beside the weights.
        placement = replace(placement, dtype=torch.float32, reason="to merge in")
    policy = load_policy(config, placement, console, Stopwatch())
    load_adapter(policy, adapters)
    out.parent.mkdir(exist_ok=True)
    if config.export_as == "adapter":
        write = export_adapter
    else:
        console.say(f"merged weights differ by at most {check_bake(policy, out.parent):.1e} nats")
        write = export_merged
    replace_folder(out, partial(write, policy))
    write_card(folder, out, config.export_as)
    console.say(f"exported: {out}")
    return out


def check_bake(policy: Policy, beside: Path) -> float:
    """Largest difference between stack and merged weights on a sentence, nats.

    Args:
        policy: With its adapters.
        beside: A folder that holds another copy of the weights meanwhile.

    Raises:
        HomeostatError: It is above the tolerance of the weights' dtype.
    """
    ids = policy.tokenizer(SAMPLE, return_tensors="pt", add_special_tokens=False)["input_ids"]
    difference = verify_bake(policy, ids.to(policy.device), beside)
    allowed = TOLERANCE[policy.dtype]
    if not difference <= allowed:
        raise HomeostatError(
            f"merging the adapters changes log-probabilities by {difference:.2g} nats, and "
            f"{str(policy.dtype).removeprefix('torch.')} allows {allowed:g}; export with "
            "export_as=adapter, or dtype=float32 resume_override=true."
        )
    return difference
