"""The folder that keeps what is expensive to make again: de-quantised weights, fitted probes.

A cache is never needed: an entry that is damaged is computed again, and one that cannot be kept is
done without.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from homeostat.errors import HomeostatError
from homeostat.files import cache_root, write_text
from homeostat.types import Conversation, Turn

if TYPE_CHECKING:
    from homeostat.models.adapters import Policy

Kept = TypeVar("Kept")


def cache_folder(*parts: str) -> Path:
    """A folder below `cache_root`; made if absent.

    Raises:
        HomeostatError: The folder cannot be made.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HomeostatError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set HOMEOSTAT_CACHE to "
            "a folder that you may write to."
        ) from error
    return folder


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Hex SHA-256 of this package's sources: results of other code are never taken for ours."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def identity(policy: Policy) -> list[str]:
    """All that a policy with its adapters off reads with: what is cached of a model is keyed by it.

    Weights, vocabulary, how conversations are rendered, what ends a reply, dtype and device.
    """
    sample = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    rendered = [policy.tokenizer.chat_template, policy.eos_ids]
    for turns in (sample, (Turn("system", "s"), *sample)):
        rendered.append(policy.encode(Conversation(turns)).ids)
    words = hashlib.sha256(json.dumps(rendered, default=str).encode()).hexdigest()
    base = policy.base
    return [base.fingerprint, base.vocabulary, words, str(policy.dtype), policy.device.type]


def read_kept(path: Path, read: Callable[[Path], Kept]) -> Kept | None:
    """What ``read`` makes of an entry of the cache; None if it is absent or damaged.

    Args:
        path: Of the entry.
        read: May raise what readers raise over a damaged file.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        print(f"The cache entry {path} is damaged; computing it again.", file=sys.stderr)
        return None


def keep(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make an entry of the cache; one that cannot be kept is done without, said once.

    Args:
        path: Of the entry; the folders above it are made.
        write: Makes the entry whole or not at all.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except (OSError, SafetensorError) as error:  # the latter for a disk that is full
        _say_once(
            f"The cache in {cache_root()} cannot be written ({getattr(error, 'strerror', error)}): "
            "what is computed now is not kept. Set HOMEOSTAT_CACHE to another folder to keep it."
        )


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def remembered(kind: str, recipe: Any, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns, as JSON: from the cache where recipe and code are the same.

    Args:
        kind: Folder of the cache.
        recipe: Everything that the result follows from, JSON-ready.
        compute: Returns something JSON-ready.
    """
    text = json.dumps([code_digest(), recipe], sort_keys=True, default=str)
    path = cache_root() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    kept = read_kept(path, lambda entry: [json.loads(entry.read_text(encoding="utf-8"))])
    if kept is not None:
        return kept[0]
    computed = json.dumps(compute())
    keep(path, lambda entry: write_text(entry, computed))
    return json.loads(computed)
