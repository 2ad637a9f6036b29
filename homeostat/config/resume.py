"""Continuing a run: ``homeostat resume=<run folder>`` means the same config in the same folder.

``homeostat export=<run folder>`` takes over the config in the same way.

A run folder keeps the command line's overrides in ``overrides.yaml`` and what they composed to in
``config.yaml``. Resuming puts the kept overrides in front of those typed now, lets Hydra compose
them as ever, and compares the outcome with the kept config. No torch import.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from homeostat.config.run import EXPORTS, RunConfig
from homeostat.errors import HomeostatError
from homeostat.files import write_text

CONFIG, OVERRIDES, HASH = "config.yaml", "overrides.yaml", "config.sha256"
OWN_KEYS = ("resume", "resume_override", "export", "export_as", "compare", "compare_baseline")
RUNS = ("resume", "export")  # keys that name a run folder, whose config they take over


def resume_command(folder: Path) -> str:
    """What to type in a shell to continue the run in ``folder``."""
    return f"homeostat {shlex.quote(assignment('resume', folder))}"


def save_config(config: RunConfig, overrides: Sequence[str], folder: Path) -> None:
    """Write what `with_kept_overrides` and `changed_values` read."""
    kept = [o for o in overrides if o.partition("=")[0].lstrip("+") not in OWN_KEYS]
    write_text(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(kept)))
    write_text(folder / CONFIG, _yaml(config))
    write_text(folder / HASH, config_hash(config) + "\n")


def config_hash(config: RunConfig) -> str:
    """What tells a run from every other: SHA-256 of its config, in hex."""
    return hash_of(OmegaConf.to_container(OmegaConf.create(_yaml(config))))


def hash_of(config: Any, without: Sequence[str] = ()) -> str:
    """SHA-256 of a config as it lies in a run folder, in hex.

    Args:
        config: Plain values. How the run was started and where it is mirrored do not count.
        without: Other keys at the top that do not count.
    """
    left_out = {*OWN_KEYS, "wandb", *without}
    kept = {key: value for key, value in config.items() if key not in left_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def with_kept_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line, with what the resumed run was started with in front of what is typed now.

    Raises:
        HomeostatError: There is no run to resume, or the arguments ask for a sweep.
    """
    own = [a for a in arguments if a.lstrip("+").partition("=")[0] in RUNS and "=" in a]
    value = OverridesParser.create().parse_override(own[-1]).value() if own else None
    if value is None:
        return list(arguments)
    key = own[-1].lstrip("+").partition("=")[0]
    if {"-m", "--multirun"} & set(arguments) or not isinstance(value, str | int):
        raise HomeostatError(f"{key} takes one run folder, and no sweep: {key}=<run folder>.")
    folder = Path(str(value)).expanduser().resolve()
    kept = [o for o in kept_overrides(folder, key) if o not in arguments]
    # Side by side: Hydra's parser takes no override after a flag that follows an override.
    first = next(i for i, a in enumerate(arguments) if re.match(r"~|[^-].*=", a))
    typed = list(arguments)
    last = len(typed) - 1 - typed[::-1].index(own[-1])
    typed[last : last + 1] = [assignment(key, folder), assignment("hydra.run.dir", folder)]
    return [*typed[:first], *kept, *typed[first:]]


def kept_overrides(folder: Path, key: str = "resume") -> list[str]:
    """The overrides that the run in ``folder`` was started with.

    Args:
        folder: Of the run.
        key: That named it, for the errors.

    Raises:
        HomeostatError: There is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise HomeostatError(f"{key}={folder}: there is no such folder.")
    for name in (CONFIG, OVERRIDES):
        if not (folder / name).is_file():
            raise HomeostatError(
                f"{key}={folder}: {name} is missing, so this is no run folder, or one whose run "
                "was stopped before it began; start the run anew."
            )
    return [str(override) for override in OmegaConf.load(folder / OVERRIDES)]


def changed_values(config: RunConfig, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Keys whose value is another than in the run in ``folder``: the value then and now."""
    before = flat(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    now = flat(OmegaConf.to_container(OmegaConf.create(_yaml(config))))
    keys = [key for key in {**now, **before} if key not in OWN_KEYS]
    values = {key: (before.get(key, "absent"), now.get(key, "absent")) for key in keys}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` has nothing left to do."""
    path = folder / "summary.json"
    if not path.is_file():
        return False
    summary = json.loads(path.read_text(encoding="utf-8"))
    # The time of the report is the last thing to be known: without it the run was killed there.
    over = summary["status"].startswith(("finished", "starved", "broken"))
    return over and "report" in summary["time_s"]


def refuse_changes(config: RunConfig, folder: Path) -> bool:
    """Whether the config differs from that of the run in ``folder`` and may.

    Raises:
        HomeostatError: It differs and ``resume_override`` is not set.
    """
    changed = changed_values(config, folder)
    if changed and not config.resume_override:
        listed = "; ".join(f"{key} was {old} and is {new}" for key, (old, new) in changed.items())
        raise HomeostatError(
            f"{'export' if config.export else 'resume'}={folder}: {listed}. The run keeps its "
            "config; leave these values as they were, or set resume_override=true to go on with "
            "the new ones."
        )
    return bool(changed)


def _yaml(config: RunConfig) -> str:
    """The config of a run; how it was started is no part of it."""
    return OmegaConf.to_yaml(
        OmegaConf.structured(
            replace(
                config,
                resume=None,
                resume_override=False,
                export=None,
                export_as=EXPORTS[0],
                compare=None,
                compare_baseline=None,
            )
        )
    )


def assignment(key: str, folder: Path) -> str:
    """``key=folder`` in Hydra's grammar."""
    text = str(folder)
    if re.fullmatch(r"[\w./-]+", text):
        return f"{key}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its dotted path; a list is a leaf."""
    if not isinstance(node, Mapping) or not node:
        return {path: node}
    return {
        name: leaf
        for key, item in node.items()
        for name, leaf in flat(item, f"{path}.{key}" if path else str(key)).items()
    }
