"""Checks of config values; each error names the key, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def require_positive(owner: str, **values: int | float) -> None:
    """Raise a ValueError that names the first value that is not a finite number above 0."""
    for name, value in values.items():
        require(
            math.isfinite(value) and value > 0,
            f"{owner}.{name}={value} must be above 0.",
        )


def require_fraction(owner: str, **values: int | float) -> None:
    """Raise a ValueError that names the first value outside 0..1."""
    for name, value in values.items():
        require(0 <= value <= 1, f"{owner}.{name}={value} must lie between 0 and 1.")


def require_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that lists ``allowed`` unless ``value`` is among them."""
    require(value in allowed, f"{key}={value} is unknown; choose one of {', '.join(allowed)}.")


def require_date(key: str, value: str) -> None:
    """Raise a ValueError unless ``value`` is an ISO date."""
    try:
        date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{key}={value} is no date; give one such as 2026-01-31.") from None


# Most that a count may be: above it a run would hang or die of it, and nobody has such a use.
MOST_TOKENS = 100_000  # of one reply
MOST_SAMPLES = 1_000_000  # of a bootstrap
MOST = 1_000_000  # episodes, replies, epochs


def require_at_most(owner: str, most: int, **values: int) -> None:
    """Raise a ValueError that names the first value above ``most``."""
    for name, value in values.items():
        require(value <= most, f"{owner}.{name}={value} is too much; use at most {most}.")


def as_object(composed: DictConfig) -> Any:
    """The composed config as its dataclasses.

    Raises:
        ValueError: A schema refuses a value; the message says where in the config that is.
    """
    try:
        return OmegaConf.to_object(composed)
    except OmegaConfBaseException:
        raise
    except ValueError as error:
        place = ".".join(_refused(composed))
        named = "" if place in str(error) else f"{place}: "
        raise ValueError(f"{named}{error}") from error


def _refused(node: Any) -> list[str]:
    """The way to the innermost part of a config that its schema refuses."""
    for key in node if isinstance(node, Mapping) else ():
        if OmegaConf.is_missing(node, key) or not isinstance(node[key], Mapping):
            continue
        try:
            OmegaConf.to_object(node[key])
        except ValueError:
            return [str(key), *_refused(node[key])]
    return []


def refuse_unknown_keys(config: Any, path: str = "") -> None:
    """Raise a ValueError for a key that no schema knows.

    Hydra refuses an unknown ``key=value`` itself, but lets ``+key=value`` add anything.
    """
    if isinstance(config, dict):
        for name, item in config.items():
            refuse_unknown_keys(item, f"{path}{name}.")
    elif is_dataclass(config):
        known = [f.name for f in fields(config)]
        for name, item in vars(config).items():
            require(
                name in known,
                f"{path}{name} is no key of this run; choose among {', '.join(known)}.",
            )
            refuse_unknown_keys(item, f"{path}{name}.")
