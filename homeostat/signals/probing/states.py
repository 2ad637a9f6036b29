"""Hidden states of labelled utterances: read once per model, corpus and layers, then kept.

They are the dear part of fitting a probe. They are kept in shards, each written whole, so that a
reading that was broken off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from homeostat.files import cache_root, writing
from homeostat.models.adapters import Policy
from homeostat.models.cache import identity, keep, read_kept
from homeostat.signals.probing.corpus import Corpus, Utterance
from homeostat.signals.trace import word_states
from homeostat.types import Progress, silent

SHARD = 1024  # utterances
FORMAT = 2  # raise it when the same words would give other states


def utterance_states(
    policy: Policy,
    corpus: Corpus,
    layers: Sequence[int],
    cache: bool = True,
    progress: Progress = silent,
) -> Float[np.ndarray, "U P E"]:
    """The residual stream of every utterance at every layer, pooled as in `Trace`, adapter off.

    Args:
        policy: Read with the adapter off.
        corpus: Its last user turns are read.
        layers: Decoder blocks.
        cache: Keep the states in the cache folder, and use what lies there.
        progress: Told how many utterances are read.
    """
    recipe = [FORMAT, SHARD, *identity(policy), corpus.digest, list(layers)]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    folder = cache_root() / "states" / key
    total = len(corpus.utterances)
    shards = []
    for start in range(0, total, SHARD):
        part = corpus.utterances[start : start + SHARD]
        path = folder / f"{start:06d}.safetensors"
        states = read_kept(path, _load_states) if cache else None
        if states is None:
            with policy.reference():
                states = read_states(policy, part, layers, progress, start, total)
            if cache:
                keep(path, partial(_save_states, states=states))
        shards.append(states)
        progress(start + len(part), total)
    return np.concatenate(shards)


def read_states(
    policy: Policy,
    utterances: Sequence[Utterance],
    layers: Sequence[int],
    progress: Progress = silent,
    before: int = 0,
    count: int | None = None,
) -> Float[np.ndarray, "U P E"]:
    """The states of some utterances, not cached, under the policy as it is now."""
    texts = [u.text for u in utterances]

    def report(done: int, total: int, tokens: int = 0) -> None:
        progress(before + done, count or total, tokens)

    return word_states(policy, texts, layers, report)


def _load_states(path: Path) -> np.ndarray:
    states: np.ndarray = load_file(path)["states"]
    return states


def _save_states(path: Path, states: np.ndarray) -> None:
    with writing(path) as scratch:
        save_file({"states": states}, scratch)
