"""What plays a user whose words a language model writes, and the folder that keeps its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from homeostat.files import cache_root, write_text
from homeostat.models.cache import keep, read_kept
from homeostat.types import Conversation


@dataclass(frozen=True)
class Request:
    """What a model is asked.

    Attributes:
        talk: Ends with a user's turn; the model speaks the assistant's.
        seed: Of the sampling, 0 to 2^31 - 1.
        begun: What an answer is to begin with, for a model that can be made to.
    """

    talk: Conversation
    seed: int
    begun: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation in the protocol of OpenAI."""
        return [{"role": turn.role, "content": turn.text} for turn in self.talk.turns]


@runtime_checkable
class UserModel(Protocol):
    """A language model that answers requests.

    Attributes:
        identity: All that an answer follows from beside the request, JSON-ready; never a key.
    """

    identity: list[Any]

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Number of each request and the answer to it, as soon as it is there, in any order.

        Raises:
            HomeostatError: A request cannot be answered. What could be answered has come before.
        """


def completed(model: UserModel, requests: Sequence[Request]) -> list[str]:
    """An answer to every request: kept from before, or from the model, which gets each once.

    Answers are kept one by one as they come, so that a model that fails costs none of them.

    Raises:
        HomeostatError: See `UserModel.complete`.
    """
    paths = [_path(model, request) for request in requests]
    answers: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        kept = read_kept(path, _read)
        if kept is not None:
            answers[path] = kept
    missing = {p: r for p, r in zip(paths, requests, strict=True) if p not in answers}
    places = list(missing)
    for number, text in model.complete(list(missing.values())) if missing else ():
        answers[places[number]] = text
        keep(places[number], partial(write_text, text=json.dumps(text)))
    return [answers[path] for path in paths]


def _path(model: UserModel, request: Request) -> Path:
    recipe = json.dumps(
        [model.identity, request.messages, request.seed, request.begun], sort_keys=True
    )
    name = hashlib.sha256(recipe.encode()).hexdigest()
    return cache_root() / "users" / name[:2] / f"{name[2:]}.json"


def _read(path: Path) -> str:
    text = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(text, str):
        raise TypeError(f"{path} holds no answer.")
    return text
