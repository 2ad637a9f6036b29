"""Whether the reading of the trait in a model's own replies can be believed.

Measured before anything is trained: on replies of the base that is told to be either side, beside
what mere length and speaking of oneself could tell. Replies and reading are of the same base, so
that this is the best case: a reading that fails here reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from homeostat.config.persona import PersonaConfig
from homeostat.evals.stages import ASKED
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import Sampling, reply_ids, with_sampled_replies
from homeostat.signals.probing.auroc import auroc, auroc_samples, interval95
from homeostat.steering.shown import SIDES, shown_nats, shown_shift
from homeostat.steering.vectors import PersonaVector, as_persona
from homeostat.types import Progress, silent

FIRST_PERSON = re.compile(r"\b(?:i|me|my|mine|myself|i'm|i've|i'll|i'd)\b")


def validate_shown(
    policy: Policy,
    persona: PersonaConfig,
    prompts: Sequence[str],
    sampling: Sampling,
    vector: PersonaVector | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Whether the reading tells the two sides apart in replies of the base that is told to be them.

    Args:
        policy: Only its base is asked.
        persona: The two sides.
        prompts: Each is answered by both.
        sampling: Of the replies.
        vector: The persona's under the base; None: the reading as a shift is left out.
        progress: Told how many replies are done.

    Returns:
        ``n`` replies, and for ``shown``, ``shift``, ``tokens`` and ``first_person`` the ``auroc``
        of positive against negative with ``ci95``, a bootstrap over prompts.
    """
    asked = [as_persona(persona, side, text) for text in prompts for side in SIDES]
    with policy.reference():
        talks = with_sampled_replies(policy, asked, sampling, progress=progress)
    label = np.array([1, 0] * len(prompts))
    group = np.repeat(np.arange(len(prompts)), 2)
    scores: dict[str, Sequence[float | None]] = {
        "shown": shown_nats(policy, persona, talks),
        "tokens": [float(len(reply_ids(talk))) for talk in talks],
        "first_person": [first_person(talk.turns[-1].text) for talk in talks],
    }
    if vector is not None:
        scores["shift"] = shown_shift(policy, vector, talks)
    return {"n": len(talks)} | {name: _area(label, score, group) for name, score in scores.items()}


def compare_lines(
    policy: Policy,
    persona: PersonaConfig,
    lines: Sequence[str],
    sampling: Sampling,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """How much of the trait shows in replies of the base under each system line.

    The persona's own prompts are answered, which measure no stage, so that the best line is chosen
    on other items than it is measured on.

    Args:
        policy: Only its base is asked.
        persona: Its positive side is put into each line; its prompts are answered.
        lines: With ``{persona}`` in them.
        sampling: Of the replies; the same random numbers for every line.
        progress: Told how many replies to a line are done.

    Returns:
        For each line ``line``, ``shown_nats``, a mean over ``n`` replies that show anything at all;
        None where none does.
    """
    rows = []
    for line in lines:
        told = replace(persona, prompt=line)
        asked = [as_persona(told, "positive", text) for text in persona.prompts[:ASKED]]
        with policy.reference():
            talks = with_sampled_replies(policy, asked, sampling, progress=progress)
        known = [nats for nats in shown_nats(policy, persona, talks) if nats is not None]
        mean = float(np.mean(known)) if known else None
        rows.append({"line": line, "shown_nats": mean, "n": len(known)})
    return rows


def first_person(text: str) -> float | None:
    """Words of speaking of oneself as a share of all; None for a text without words."""
    words = re.findall(r"[\w']+", text.lower().replace("\u2019", "'"))
    if not words:
        return None
    return sum(FIRST_PERSON.fullmatch(word) is not None for word in words) / len(words)


def _area(label: np.ndarray, score: Sequence[float | None], group: np.ndarray) -> dict[str, Any]:
    there = np.array([value is not None for value in score])
    known = np.array([value for value in score if value is not None])
    if not len(known):
        return {"auroc": None, "ci95": None}
    samples = auroc_samples(label[there], known, group[there])
    return {"auroc": auroc(label[there], known), "ci95": interval95(samples)}
