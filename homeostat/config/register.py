"""From schema to Hydra, and from config to object.

A value and its unit stand in a YAML file under ``conf/`` and nowhere else; the schema knows its
name, type and limits. `register` stores every class of this folder that names its place in a
``schema`` of its own in Hydra's ConfigStore, as ``schema/<group>/<option>``, so that a wrong key or
type fails before anything heavy is imported; what spans several fields is checked in
``__post_init__``. `build` turns a config into the object that its ``_target_`` names: the config
itself is the constructor's first argument, so a schema and the code that it configures cannot drift
apart. `config_part` gives scripts and tests what a run would get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

import homeostat.config
from homeostat.errors import HomeostatError

PACKAGE = Path(__file__).resolve().parents[1]
# In a source tree conf/ lies beside the package, in a wheel inside it.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())
T = TypeVar("T")
# Keys whose value is an option of a group of another name.
PLACED = {"eval.bots": "bot"}


def build(part: Any, kind: type[T], **runtime: Any) -> T:
    """The object that ``part._target_`` names, made from the config and runtime objects.

    Args:
        part: A config dataclass with ``_target_``.
        kind: A class or protocol that it must be of.
        **runtime: What only exists while the program runs, by keyword.

    Raises:
        HomeostatError: The target cannot be imported or called so, or makes something else.
    """
    check_target(part, kind)
    target = target_of(part)
    try:
        signature(target).bind(part, **runtime)
    except TypeError as error:
        told = ", ".join(["its config", *runtime])
        raise HomeostatError(
            f"_target_={part._target_} cannot be called with {told}: {error}."
        ) from error
    return checked(target(part, **runtime), kind, f"_target_={part._target_}")


def checked(made: Any, kind: type[T], maker: str) -> T:
    """What was made, if it is what it must be.

    Args:
        made: By whatever the user has named.
        kind: A class or protocol that it must be of.
        maker: What made it, for the error.

    Raises:
        HomeostatError: It is something else.
    """
    if isinstance(made, kind):
        return made
    wanted = [*vars(kind).get("__annotations__", ()), *_public(kind)]
    lacking = [name for name in wanted if not hasattr(made, name)]
    raise HomeostatError(
        f"{maker} makes a {type(made).__name__}, which is no {kind.__name__}: it lacks "
        f"{', '.join(lacking) or 'its class'}."
    )


def check_target(part: Any, kind: type) -> None:
    """Check before anything is made that ``part._target_`` can make a ``kind``.

    Raises:
        HomeostatError: It cannot be imported or called, or is a class that lacks a method.
    """
    target = target_of(part)
    if not callable(target):
        raise HomeostatError(f"_target_={part._target_} cannot be called; give a class.")
    if not isinstance(target, type):
        return
    members = _public(kind).items()
    methods = [name for name, one in members if callable(one) or isinstance(one, classmethod)]
    absent = [name for name in methods if not hasattr(target, name)]
    if lacking := [*absent, *sorted(getattr(target, "__abstractmethods__", ()))]:
        raise HomeostatError(
            f"_target_={part._target_} is no {kind.__name__}: the class lacks {', '.join(lacking)}."
        )


def _public(kind: type) -> dict[str, Any]:
    """What a class or protocol and those that it builds on ask for, by name."""
    bases = [
        base for base in reversed(kind.__mro__) if base.__module__ not in ("builtins", "typing")
    ]
    members = [item for base in bases for item in vars(base).items()]
    return {name: member for name, member in members if not name.startswith("_")}


def target_of(part: Any) -> Any:
    """What ``part._target_`` names.

    Raises:
        HomeostatError: It cannot be imported.
    """
    try:
        return get_object(part._target_)
    except (ImportError, ValueError) as error:
        raise HomeostatError(
            f"_target_={part._target_} cannot be imported ({error}); give the dotted path of a "
            "class or function that is on the Python path."
        ) from error


@cache
def schemas() -> dict[str, type]:
    """Every schema by the place that it names, ``<group>/<option>``."""
    names = (module.name for module in iter_modules(homeostat.config.__path__))
    modules = [import_module(f"{homeostat.config.__name__}.{name}") for name in names]
    classes = [kind for m in modules for kind in vars(m).values() if isinstance(kind, type)]
    return {vars(kind)["schema"]: kind for kind in classes if "schema" in vars(kind)}


@cache
def register() -> None:
    """Store every schema in Hydra's ConfigStore, once in a process: Hydra 1.5 refuses a second."""
    for path, schema in schemas().items():
        group, _, name = f"schema/{path}".rpartition("/")
        ConfigStore.instance().store(group=group, name=name, node=schema)


def options() -> dict[str, list[str]]:
    """The options of every group that the command line chooses from, groups by name.

    These are the groups of the defaults list of ``config.yaml``: what only other files are made of
    is no choice.
    """
    entries = OmegaConf.load(CONF / "config.yaml").defaults
    groups = sorted(str(key) for entry in entries if OmegaConf.is_dict(entry) for key in entry)
    options_of = {
        name: sorted(path.stem for path in (CONF / name).glob("*.yaml")) for name in groups
    }
    return {name: names for name, names in options_of.items() if names}


def as_choices(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra reads them, to which ``eval.bots=curious`` is ``bot@eval.bots=curious``.

    Raises:
        HomeostatError: More than one option is given at once, or one that is no more.
    """
    chosen = []
    for typed in overrides:
        key, _, value = typed.partition("=")
        if key.startswith("wandb."):
            raise HomeostatError(
                f"{typed}: where figures are mirrored is a group now; give tracker=none for none, "
                "tracker.mode=online, tracker.project=<name>, tracker.run_name=<name>."
            )
        group = PLACED.get(key)
        if group is not None and value.startswith(("[", "{")):
            raise HomeostatError(
                f"{typed} must be one option of {group}, such as {key}={options()[group][0]}; "
                "an option of your own may mix several, as mixed does."
            )
        chosen.append(typed if group is None or value in ("", "null") else f"{group}@{typed}")
    return chosen


def compose_run(*overrides: str) -> DictConfig:
    """The config of a run as the command line composes it, not converted or checked yet."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=as_choices(overrides))


def config_part(choice: str, *path: str, **changes: Any) -> Any:
    """A part of a run's config with some values changed, checked as in a run.

    ``config_part("trainer=ppo", lr=1e-4)`` is the config of PPO, ``config_part("trainer=ppo",
    "kl", coef=0.1)`` of its price of KL, ``config_part("lora", rank=4)`` of the adapter.

    Args:
        choice: A group and its option, or a key of the run. No scale is chosen.
        *path: Names of the keys that lead further down.
        **changes: Values by key.
    """
    node = _without_scale(*([choice] if "=" in choice else []))
    for key in (choice.partition("=")[0], *path):
        node = node[key]
    return replace(OmegaConf.to_object(node), **changes)  # type: ignore[type-var]


@cache
def _without_scale(*choice: str) -> DictConfig:
    return compose_run("~scale", *choice)
