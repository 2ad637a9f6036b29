"""Functions of the user's own that put a number on every assistant turn: signals, reward terms.

Each is named in the config by its ``_target_``; the keys beside it are its options. Whatever such a
function does wrong ends in one sentence that names it by its place in the config.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from jaxtyping import Float

from homeostat.config.signals import SignalsConfig
from homeostat.errors import HomeostatError


@dataclass(frozen=True)
class OwnFunction:
    """A function of the user's own.

    Attributes:
        key: Its place in the config, such as ``signals.own.politeness``.
        function: What it names.
        options: What it gets by keyword.
        may_miss: Whether NaN stands for a turn that it says nothing about.
    """

    key: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    may_miss: bool

    def __call__(self, about: Sequence[Any], turns: int) -> Float[np.ndarray, " N"]:
        """One number per assistant turn of one conversation.

        Args:
            about: What the function is asked about, by place.
            turns: Assistant turns of the conversation.

        Raises:
            HomeostatError: It fails, or returns anything but one number per assistant turn.
        """
        try:
            given = self.function(*about, **self.options)
        except Exception as error:  # whatever a function of the user's raises
            raise HomeostatError(
                f"{self.key} failed: {type(error).__name__}: {error}. Mend the function; "
                "HYDRA_FULL_ERROR=1 shows where it was."
            ) from error
        values = _numbers(given)
        if values is None or values.shape != (turns,):
            shape = "" if values is None else f", of shape {values.shape},"
            raise HomeostatError(
                f"{self.key} returned {reprlib.repr(given)}{shape} for a conversation with "
                f"{turns} assistant turns; it must return one number per assistant turn."
            )
        fit = ~np.isinf(values) if self.may_miss else np.isfinite(values)
        if not fit.all():
            turn = int(np.flatnonzero(~fit)[0])
            kind, silence = ("signal", "NaN") if self.may_miss else ("term", "0")
            raise HomeostatError(
                f"the own {kind} {self.key} gave {given[turn]} for assistant turn {turn + 1} of "
                f"{turns}; every turn needs a finite number, {silence} where the {kind} has "
                "nothing to say."
            )
        return values


def own_function(key: str, part: Mapping[str, Any], may_miss: bool = False) -> OwnFunction:
    """The function that a part of the config names.

    Args:
        key: Its place in the config.
        part: Its ``_target_`` and its options.
        may_miss: Whether NaN stands for a turn that it says nothing about.

    Raises:
        HomeostatError: It cannot be imported, or is no function.
    """
    target = f"{key}._target_={part['_target_']}"
    try:
        function = get_object(part["_target_"])
    except Exception as error:  # whatever a module of the user's raises when it is imported
        raise HomeostatError(
            f"{target} cannot be imported: {error}. Give the dotted path of a callable that is on "
            "the Python path."
        ) from error
    if not callable(function):
        raise HomeostatError(f"{target} is no callable; give a function.")
    options = {name: value for name, value in part.items() if name != "_target_"}
    return OwnFunction(key, function, options, may_miss)


def own_signals(config: SignalsConfig) -> list[OwnFunction]:
    """The user's own signals, in the order of the signal table.

    Each is a function ``signal(conversation, trace, **options)``.
    """
    return [
        own_function(f"signals.own.{name}", signal, may_miss=True)
        for name, signal in config.own.items()
    ]


def _numbers(given: Any) -> Float[np.ndarray, "*S"] | None:
    """Numbers as an array, None among them as NaN, tensors without gradient; else None."""
    try:
        if isinstance(given, list | tuple):
            given = [_without_gradient(value) for value in given]
        array = np.asarray(_without_gradient(given))
        return None if array.dtype.kind in "SUmM" else array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _without_gradient(value: Any) -> Any:
    return value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else value
