"""Continuing a run: ``homeostat resume=<run folder>`` means the same config in the same folder.

``homeostat export=<run folder>`` takes over the config in the same way.

A run folder keeps the whole config in ``config.yaml``. Resuming gives it to Hydra in the place of
``conf/config.yaml``, lets it put on top what is typed now, and compares the outcome with what is
kept; so nothing of ``conf/`` that has changed since, and no folder that was typed then, is needed.
``overrides.yaml`` keeps what was typed, to name the run beside others. No torch import.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from homeostat.config.foreign import (
    allowing,
    foreign_targets,
    refuse_foreign,
    refuse_overrides,
    refuse_ways_out,
)
from homeostat.config.register import schemas
from homeostat.config.run import EXPORTS, RunConfig
from homeostat.config.upgrade import placed, schema_path, upgraded, varies
from homeostat.errors import HomeostatError
from homeostat.files import LOST, damaged, read_json, write_text

CONFIG, OVERRIDES, HASH = "config.yaml", "overrides.yaml", "config.sha256"
OWN_KEYS = (
    *("resume", "resume_override", "export", "export_as", "compare", "compare_baseline"),
    "allow_targets",
)
RUNS = ("resume", "export")  # keys that name a run folder, whose config they take over


def resume_command(folder: Path) -> str:
    """What to type in a shell to continue the run in ``folder``, with the code of its user's."""
    typed = [assignment("resume", folder)]
    if (folder / CONFIG).is_file() and (named := foreign_targets(read_config(folder))):
        typed.append(allowing(named))
    return shlex.join(["homeostat", *typed])


def checkpoints_in(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; one that was being written has another name."""
    return sorted(folder.glob("step_??????"))


def save_config(config: RunConfig, overrides: Sequence[str], folder: Path) -> None:
    """Write what `read_config` and `kept_overrides` read."""
    kept = [o for o in overrides if key_of(o) not in OWN_KEYS]
    write_text(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(kept)))
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(_values(config))))
    write_text(folder / HASH, config_hash(config) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the run in ``folder``, in today's form; interpolations are escaped.

    Raises:
        HomeostatError: It cannot be read.
    """
    path = folder / CONFIG
    return upgraded(_read_config(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=1024)
def _read_config(path: Path, _time: int) -> dict[str, Any]:
    """Every job of a sweep asks for the configs of all others."""
    config = read_yaml(path, LOST)
    if not isinstance(config, dict) or not config:
        raise HomeostatError(f"{path} holds no config; {LOST}.")
    return config


def read_yaml(path: Path, mend: str) -> Any:
    """What a YAML file holds, as plain values.

    Args:
        path: Of the file.
        mend: What to do if it is damaged, for the error.

    Raises:
        HomeostatError: It is cut off or damaged, or repeats a part of itself by an alias.
    """
    try:
        _refuse_aliases(path)
        return OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, ValueError, OmegaConfBaseException, OSError, RecursionError) as error:
        raise damaged(path, error, mend) from error


def _refuse_aliases(path: Path) -> None:
    """Raise a ValueError for a YAML alias: no run writes one, and few make a text without end."""
    text = path.read_text(encoding="utf-8")
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("it repeats parts of itself by aliases, and a run writes none")


def config_hash(config: RunConfig) -> str:
    """What tells a run from every other: SHA-256 of its config, in hex."""
    return hash_of(_values(config))


def hash_of(config: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """SHA-256 of a config as it lies in a run folder, in hex.

    Args:
        config: Plain values. How the run was started, where it is mirrored
            and what a sweeper looks at do not count.
        without: Other keys at the top that do not count.
    """
    # Amounts of work stand in the values that follow from them.
    left_out = {*OWN_KEYS, "tracker", "work", "objective", *without}
    kept = {key: value for key, value in config.items() if key not in left_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def asked_run(arguments: Sequence[str]) -> tuple[str, Path] | None:
    """The key and the folder of the run that the command line resumes or exports; None for none.

    Raises:
        HomeostatError: There is no such run, or the arguments ask for a sweep or another folder.
    """
    named = [a for a in arguments if key_of(a) in RUNS and "=" in a]
    if not named:
        return None
    key, _, text = named[-1].lstrip("+").partition("=")
    value = text if Path(text).expanduser().is_dir() else _parsed(named[-1])
    if value is None:
        return None
    if {"-m", "--multirun"} & set(arguments) or not isinstance(value, str | int):
        raise HomeostatError(f"{key} takes one run folder, and no sweep: {key}=<run folder>.")
    folder = Path(str(value)).expanduser().resolve()
    for typed in map(key_of, arguments):
        if typed in ("hydra.run.dir", "experiment"):
            raise HomeostatError(
                f"{key}={folder}: the run keeps its own folder and experiment; leave {typed} out."
            )
    _require_run(folder, key)
    return key, folder


def _parsed(override: str) -> Any:
    """The value of an override, which may have other characters where it is quoted.

    Raises:
        HomeostatError: It is not in Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        raise HomeostatError(not_an_override(override)) from error


def not_an_override(typed: str) -> str:
    """What to say of an argument that Hydra's grammar refuses."""
    key, equals, value = typed.partition("=")
    if not equals:
        return (
            f"{typed} is no option; give key=value, such as trainer=ppo, or see homeostat --help."
        )
    quoted = shlex.quote(quote(key, value.strip("\"'")))
    return (
        f"{typed} cannot be read; put a value that holds other characters than letters a-z, digits "
        f"and . _ / : - into double quotes, and all of it into single ones for the shell: {quoted}."
    )


def _require_run(folder: Path, key: str) -> None:
    """Raise a HomeostatError unless there is a run in ``folder``."""
    if not folder.is_dir():
        raise HomeostatError(f"{key}={folder}: there is no such folder.")
    for name in (CONFIG, OVERRIDES):
        if not (folder / name).is_file():
            raise HomeostatError(
                f"{key}={folder}: {name} is missing, so this is no run folder, or one whose run "
                "was stopped before it began; start the run anew."
            )


def resumed_arguments(arguments: Sequence[str], key: str, folder: Path) -> list[str]:
    """The command line with the run's folder as Hydra reads it.

    A choice that the run was started with says nothing new, and is left out.
    """
    kept = {key_of(o): o for o in kept_overrides(folder)}
    known = [o for o in kept.values() if re.fullmatch(r"\w+=[\w.,\[\]-]+", o)]
    return [
        assignment(key, Path(_escaped(str(folder)))) if key_of(a) == key else a
        for a in arguments
        if a not in known
    ]


def resumed_config(main: Path, key: str, folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What Hydra is to begin with in the place of its main config: the config of a run.

    Args:
        main: The file of the main config, which says what groups there are.
        key: ``resume`` or ``export``.
        folder: Of the run.
        arguments: The command line. An option of a group that it names takes the group's place.

    Raises:
        HomeostatError: The run's folder is more than data; see `homeostat.config.foreign`.
    """
    refuse_ways_out(folder, key)
    base, kept = read_yaml(main, LOST), read_config(folder)
    allowed = [_parsed(a) for a in arguments if key_of(a) == "allow_targets"]
    trusted = [n for names in allowed for n in (names if isinstance(names, list) else [names])]
    refuse_foreign(kept, folder, key, list(map(str, trusted)))
    refuse_overrides(kept_overrides(folder), folder, key, list(map(str, trusted)))
    typed = set(map(key_of, arguments))
    defaults: list[Any] = []
    for entry in base.pop("defaults"):
        choice = next(iter(entry)) if isinstance(entry, dict) else entry
        group, _, place = choice.partition("@")
        above, _, key = (place or group).rpartition(".")
        parent = placed(kept, above) if above else kept
        if parent is not None and key in parent and choice not in typed:
            if varies(group, parent[key]):
                defaults.append(f"{schema_path(group, parent[key])}@{place or group}")
        elif parent is not None and key in parent:
            del parent[key]
            defaults.append(entry)
        else:
            # A group without a key of its own has shaped the values that are kept.
            spent = isinstance(entry, dict) and not choice.startswith("override ")
            defaults.append({choice: None} if spent else entry)
    # How a run is started, and what it may, is never taken from its folder.
    kept = {key: value for key, value in kept.items() if key not in OWN_KEYS}
    values = {key: kept.get(key, value) for key, value in {**kept, **base}.items()}
    values["hydra"]["run"]["dir"] = _escaped(str(folder))
    if "trainer" in kept and any(key == "scale" or key.startswith("work.") for key in typed):
        values["trainer"] = values["trainer"] | _amounts_of_work(kept["trainer"])
    return {"defaults": defaults, **values}


def _amounts_of_work(trainer: Mapping[str, Any]) -> dict[str, str]:
    """A trainer's numbers of steps, to follow from the amounts of work that are typed now."""
    schema: Any = schemas()[schema_path("trainer", trainer).removeprefix("schema/")]
    steps, batch = schema.amounts
    return {"max_steps": f"${{work.{steps}}}", "batch_size": f"${{work.{batch}}}"}


def kept_overrides(folder: Path) -> list[str]:
    """What was typed for the run in ``folder``.

    Raises:
        HomeostatError: It cannot be read.
    """
    path = folder / OVERRIDES
    overrides = read_yaml(path, "put [] into it: it only names the run beside others")
    if not isinstance(overrides, list):
        raise HomeostatError(f"{path} holds no list; put [] into it.")
    return [str(override) for override in overrides]


def started_in(folder: Path) -> Path | None:
    """Where the run in ``folder`` was started, which relative paths in its config go from.

    None where it is not known, or no longer there.
    """
    path = folder / "environment.json"
    kept = read_json(path, "delete it") if path.is_file() else {}
    place = Path(str(kept["cwd"])) if isinstance(kept, dict) and "cwd" in kept else None
    return place if place is not None and place.is_dir() else None


def changed_values(config: RunConfig, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Keys whose value is another than in the run in ``folder``: the value then and now."""
    before, now = flat(read_config(folder)), flat(_values(config))
    keys = [key for key in {**now, **before} if key not in OWN_KEYS and key[:5] != "work."]
    values = {key: (before.get(key, "absent"), now.get(key, "absent")) for key in keys}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` has nothing left to do."""
    path = folder / "summary.json"
    if not path.is_file():
        return False
    summary = read_json(path)
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


def _values(config: RunConfig) -> dict[str, Any]:
    """The config of a run as plain values; how it was started is no part of it."""
    started: dict[str, Any] = {
        "resume": None,
        "resume_override": False,
        "export": None,
        "export_as": EXPORTS[0],
        "compare": None,
        "compare_baseline": None,
        "allow_targets": [],
    }
    plain: dict[str, Any] = _escaped({**asdict(config), **started})
    return plain


def _escaped(node: Any) -> Any:
    """The same values, in which OmegaConf finds no interpolation."""
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", node)
    if isinstance(node, Mapping):
        return {key: _escaped(item) for key, item in node.items()}
    return [_escaped(item) for item in node] if isinstance(node, list) else node


def key_of(argument: str) -> str:
    """The key of an override."""
    return argument.lstrip("+~").partition("=")[0]


def assignment(key: str, folder: Path) -> str:
    """``key=folder`` in Hydra's grammar."""
    text = str(folder)
    return f"{key}={text}" if re.fullmatch(r"[\w./-]+", text, re.ASCII) else quote(key, text)


def quote(key: str, text: str) -> str:
    """``key="text"`` in Hydra's grammar."""
    # A backslash counts as one unless quotes follow it.
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + match[2].replace('"', '\\"'), text)
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
