"""The adapters of a policy on disk: written, taken over, and told apart by a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from homeostat.errors import HomeostatError
from homeostat.files import damaged
from homeostat.models.adapters import POLICY, Policy


def save_adapter(policy: Policy, folder: Path) -> None:
    """Write the policy's adapters so that plain ``PeftModel.from_pretrained`` loads them.

    The first lies in the folder itself, those of later rounds in folders of their names.
    """
    policy.model.save_pretrained(str(folder), selected_adapters=policy.rounds)


def load_adapter(policy: Policy, folder: Path) -> None:
    """Take over the weights that `save_adapter` wrote, in as many rounds.

    Raises:
        HomeostatError: They belong to an adapter of another shape, or are damaged.
    """
    for done in range(1, 1 + len(list(folder.glob("round_*")))):
        if len(policy.rounds) <= done:
            policy.add_round(seed=0)
    for name in policy.rounds:
        round_folder = folder if name == POLICY else folder / name
        saved = _saved_weights(round_folder / "adapter_model.safetensors")
        present = get_peft_model_state_dict(policy.model, adapter_name=name)
        if {n: w.shape for n, w in saved.items()} != {n: w.shape for n, w in present.items()}:
            raise HomeostatError(
                f"the adapter in {round_folder} does not fit this model; the model and lora.* "
                "must be those that it was trained with."
            )
        set_peft_model_state_dict(policy.model, saved, adapter_name=name)


def adapter_digest(policy: Policy) -> str:
    """Hex SHA-256 of the weights of every round, which tells one trained policy from another.

    Half-precision weights are read as float32, which holds them exactly.
    """
    digest = hashlib.sha256()
    for name in policy.rounds:
        shape = policy.model.peft_config[name].to_dict()
        digest.update(repr(sorted((k, str(v)) for k, v in shape.items())).encode())
        for parameter in policy.parameters_of(name):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _saved_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        HomeostatError: It is cut off or damaged.
    """
    mend = (
        "delete the checkpoint that it lies in, and the run goes on from the one before it; the "
        "file in adapters/ is that of the last checkpoint"
    )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error, mend) from error
