"""What a run folder may hold: files of its own, data, and names of code that is homeostat's own.

``resume=`` and ``export=`` take over a folder that may come from somebody else. It is data: code of
other packages is not imported for it, Hydra's own part does not come from it, what it says of the
environment is not looked up, unless the user says so on the command line; and it is written into,
so nothing in it leads elsewhere. No torch import.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from homeostat.config.register import CONF, schemas
from homeostat.errors import HomeostatError

TARGET = "_target_"
SECRET = "api_key_env"  # key of an endpoint that names an environment variable
OWN_FUNCTION = re.compile(r"(?:reward\.terms|signals\.own)\..+\.function")
TYPED_TARGET = re.compile(rf"{TARGET}['\"]?\s*[:=]\s*['\"]?([\w.]+)")  # in an override
# Where wandb looks for settings of its own, such as the address that everything is sent to.
WANDB_SETTINGS = ("wandb/settings", ".wandb/settings")
PLAIN = (str, int, float, type(None))
HYDRAS = ("hydra", "defaults")  # top-level keys that Hydra itself reads
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


@cache
def own_targets() -> frozenset[str]:
    """Every ``_target_`` that homeostat's schemas and its folder of configs name."""
    defaults = {str(vars(kind).get(TARGET, "")) for kind in schemas().values()}
    texts = (path.read_text(encoding="utf-8") for path in sorted(CONF.rglob("*.yaml")))
    written = {name for text in texts for name in re.findall(rf"{TARGET}:\s*([\w.]+)", text)}
    return frozenset({*defaults, *written} - {""})


def refuse_foreign(
    config: Mapping[str, Any], folder: Path, key: str, allowed: Sequence[str]
) -> None:
    """Refuse a run folder's config that names code of others, or is more than data.

    Args:
        config: As it lies in the folder, in today's form.
        folder: Of the run.
        key: ``resume`` or ``export``, for the error.
        allowed: Modules and dotted paths that the user trusts, of ``allow_targets``.

    Raises:
        HomeostatError: Says what was refused, and what to type if it is to be trusted.
    """
    where = f"{key}={folder}"
    for name in HYDRAS:
        if name in config:
            raise HomeostatError(
                f"{where}: its config.yaml sets {name}, which tells Hydra what to run and is never "
                "taken from a run folder; remove it from the file if you know what it is."
            )
    for path, value in _leaves(config):
        if not isinstance(value, PLAIN):
            raise HomeostatError(
                f"{where}: {path} in its config.yaml is a {type(value).__name__}, and a run folder "
                "holds texts and numbers only; write it as one of them."
            )
        if isinstance(value, str) and INTERPOLATION.search(value):
            raise HomeostatError(
                f"{where}: {path}={value} in its config.yaml would be looked up here, and a run "
                "folder holds values only; write the value itself into the file."
            )
    _refuse_untrusted(foreign_targets(config), f"{where}: its config", allowed)


def refuse_overrides(
    overrides: Sequence[str], folder: Path, key: str, allowed: Sequence[str]
) -> None:
    """Refuse what a run folder says was typed for it if that is more than values of its config.

    Arguments as in `refuse_foreign`.

    Raises:
        HomeostatError: An override is a flag, is Hydra's own, or names code of others.
    """
    where = f"{key}={folder}"
    for typed in overrides:
        if typed.startswith("-") or re.match(r"[+~]*hydra\b", typed):
            raise HomeostatError(
                f"{where}: its overrides.yaml holds {typed}, which tells Hydra what to run and is "
                "never taken from a run folder; remove it from the file if you know what it is."
            )
    named = {value: typed for typed in overrides for value in TYPED_TARGET.findall(typed)}
    foreign = {value: typed for value, typed in named.items() if value not in own_targets()}
    _refuse_untrusted(foreign, f"{where}: its overrides.yaml", allowed)


def refuse_ways_out(folder: Path, key: str) -> None:
    """Refuse a run folder in which something leads elsewhere, before anything is written there.

    Args:
        folder: Of the run.
        key: ``resume`` or ``export``, for the error.

    Raises:
        HomeostatError: Something in it is a link to a place outside, no file at all, or settings
            of wandb's.
    """
    home = folder.resolve()
    for above, folders, files in os.walk(home):
        for path in (Path(above, name) for name in (*folders, *files)):
            place = path.relative_to(home)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise HomeostatError(
                    f"{key}={folder}: {place} in it is a link to {os.readlink(path)}, outside of "
                    "the folder that is written into; put what it leads to in its place."
                )
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise HomeostatError(
                    f"{key}={folder}: {place} in it is neither a file nor a folder; remove it."
                )
        if Path(above) == home / "wandb":
            folders.clear()  # earlier mirrors, which have ended; their logs lie in wandb's cache
    for name in WANDB_SETTINGS:
        if (home / name).exists():
            raise HomeostatError(
                f"{key}={folder}: {name} in it tells wandb where to send what it is given, and "
                "homeostat writes no such file; remove it, or move it to where it is your own."
            )


def _refuse_untrusted(foreign: Mapping[str, str], where: str, allowed: Sequence[str]) -> None:
    """Raise a HomeostatError if anything that is not homeostat's own is not allowed either."""
    refused = {
        value: path
        for value, path in foreign.items()
        if not any(_trusted(value, one) for one in allowed)
    }
    if refused:
        named = ", ".join(
            f"{value} ({path.removesuffix(f'.{TARGET}')})" for value, path in refused.items()
        )
        raise HomeostatError(
            f"{where} names what is not homeostat's own, which was neither imported nor looked up: "
            f"{named}. If you trust it, add '{allowing(refused)}'."
        )


def foreign_targets(config: Mapping[str, Any]) -> dict[str, str]:
    """What a config names that is not homeostat's own, and where.

    Code by its dotted path: every ``_target_``, and the function of an own term or signal. And the
    environment variable whose value an endpoint would be sent.
    """
    leaves = dict(_leaves(config))
    named = {}
    for path, value in leaves.items():
        above, _, key = path.rpartition(".")
        is_code = key == TARGET or OWN_FUNCTION.fullmatch(path) is not None
        if value and is_code and value not in own_targets():
            named[str(value)] = path
        elif value and key == SECRET:
            url = leaves.get(f"{above}.url")
            named[str(value)] = f"{path}, whose value would go to {url}" if url else path
    return named


def _trusted(target: str, allowed: str) -> bool:
    """Whether a target is what was allowed, or lies in that module or in one of its package.

    What a module has imported itself is not its own: my_terms.os.system is not of my_terms.
    """
    if target == allowed or target.rpartition(".")[0] == allowed:
        return True
    if not target.startswith(f"{allowed}."):
        return False
    try:
        return importlib.util.find_spec(target.rpartition(".")[0]) is not None
    except ModuleNotFoundError:
        return False


def allowing(targets: Iterable[str]) -> str:
    """What to type to have them imported."""
    return f"allow_targets=[{','.join(sorted(targets))}]"


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted path, in lists too."""
    if isinstance(node, Mapping):
        for key, item in node.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for number, item in enumerate(node):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, node
