"""Which steered completions may be learnt from: gates on text and on perplexity under the base.

Perplexities are compared with the base's own, so that limits mean the same on every model. Too low
a perplexity fails as well: a loop is what a language model finds most likely of all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.filters import FilterConfig
from homeostat.signals.repetition import repetition

GATES = {
    "short": "hardly says anything",
    "perplexity": "the base finds it unlikely",
    "tail": "the base finds its last quarter unlikely",
    "loop_likely": "the base finds it far too likely",
    "repetition": "says the same again",
    "distinct": "uses few different words",
    "diffuse": "goes round the same few words for long",
    "narration": "talks about the trait",
    "refusal": "refuses, or says that it is an AI",
}
ABOUT_CONTENT = ("narration", "refusal")  # coherent all the same
NARRATION = re.compile(
    r"\bas (?:someone|somebody|a person) who\b"
    r"|\bi(?:'m| am) (?:someone|somebody|a person|the (?:kind|type|sort) of person) (?:who|that)\b"
)
MACHINE = r"(?:ai|artificial intelligence|language model|chatbot)\b(?! [a-z]*(?:er|ist|ert)\b)"
REFUSAL = re.compile(
    rf"\bas an? (?:[\w-]+ ){{0,3}}?{MACHINE}"
    rf"|\bi(?:'m| am) (?:just |only )?an? (?:[\w-]+,? ){{0,4}}?(?:{MACHINE}|machine(?:,| designed))"
    r"|\bi(?:'m| am)? ?(?:sorry,? but|afraid) i (?:can't|cannot|am unable|'m unable)\b"
    r"|\bi(?:'m| am) (?:unable|not able) to (?:call|open|see|read|help|assist|provide|answer)\b"
    r"|\bi (?:can't|cannot|am not able to|'m not able to|am unable to) "
    r"(?:help|assist|fulfil|comply|provide|do that|answer)\b"
)
FEW_WORDS = 12  # below that the share of different words says nothing
CYCLE = 4  # tokens of the n-grams that show a loop without words
WINDOW_WORDS = 64  # in which a text that goes round in circles says the same words again


@dataclass(frozen=True)
class Steered:
    """One completion with what the gates look at.

    Attributes:
        text: Decoded.
        ids: Token ids.
        nll_R: -log p of each token under the base, without persona and steering; nats.
        dose: That it was steered with.
    """

    text: str
    ids: tuple[int, ...]
    nll_R: Float[np.ndarray, " R"]
    dose: float


def failed_gates(
    completion: Steered,
    config: FilterConfig,
    base_perplexity: float,
    narration: Sequence[re.Pattern[str]],
) -> tuple[str, ...]:
    """Gates that a completion falls through, in the order of `GATES`; () = it is kept.

    Args:
        completion: To look at.
        config: Limits.
        base_perplexity: Median perplexity of the base's own replies.
        narration: Patterns of talking about the trait, for the lower-case text.
    """
    text = completion.text.lower().replace("\u2019", "'")
    limit = np.log(base_perplexity)
    nll = completion.nll_R
    quarter = nll[-max(1, len(nll) // 4) :]
    whole = float(nll.mean()) if len(nll) else float("inf")
    tail = float(quarter.mean()) if len(nll) else float("inf")
    talks = [NARRATION, *narration]
    fails = {
        "short": _below(len(completion.ids), config.min_tokens),
        "perplexity": _above(whole - limit, config.max_perplexity, log=True),
        "tail": _above(tail - limit, config.max_tail_perplexity, log=True),
        "loop_likely": config.min_perplexity is not None
        and whole - limit < np.log(config.min_perplexity),
        "repetition": _above(repeated_share(completion), config.max_repetition),
        "distinct": _below(distinct_share(text), config.min_distinct),
        "diffuse": _below(window_diversity(text), config.min_diversity),
        "narration": config.narration and any(pattern.search(text) for pattern in talks),
        "refusal": config.refusal and REFUSAL.search(text) is not None,
    }
    return tuple(name for name in GATES if fails[name])


def is_coherent(failed: Sequence[str]) -> bool:
    """Whether the gates that a completion fell through leave it coherent."""
    return not set(failed) - set(ABOUT_CONTENT)


def repeated_share(completion: Steered) -> float:
    """The larger share of n-grams that occurred before, of words or of token ids, 0..1.

    The ids see loops that have no words: dots, emoji, one letter again and again.
    """
    grams = [completion.ids[i : i + CYCLE] for i in range(len(completion.ids) - CYCLE + 1)]
    by_ids = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return max(repetition(completion.text), by_ids)


def distinct_share(text: str) -> float:
    """Different words as a share of all, 0..1; 1 for a text of few words, 0 for one without."""
    words = re.findall(r"\w+", text)
    if not words:
        return 0.0
    return 1.0 if len(words) < FEW_WORDS else len(set(words)) / len(words)


def window_diversity(text: str) -> float | None:
    """Mean share of different words in all windows of 64 words, 0..1; None for a shorter text.

    Of all words the share falls with the length of any text; in windows it does not. It sees loops
    whose words come back in ever new order, which repeat no n-gram and which the base finds likely.

    Source: moving-average type-token ratio, Covington & McFall 2010, J. Quant. Linguist. 17(2).
    """
    words = re.findall(r"[\w']+", text)
    windows = len(words) - WINDOW_WORDS + 1
    if windows < 1:
        return None
    different = (len(set(words[i : i + WINDOW_WORDS])) for i in range(windows))
    return sum(different) / (windows * WINDOW_WORDS)


def last_good_position(
    completion: Steered, config: FilterConfig, base_perplexity: float, window: int
) -> int:
    """How many leading tokens come before it goes wrong; all of them if it never does.

    It goes wrong with the first window whose perplexity is above the limit of the last quarter, or
    with the first n-gram of ids that has occurred before.
    """
    nll, ids = completion.nll_R, completion.ids
    limit = np.inf
    if config.max_tail_perplexity is not None:
        limit = np.log(base_perplexity * config.max_tail_perplexity)
    seen: set[tuple[int, ...]] = set()
    for start in range(len(ids)):
        gram = ids[start : start + CYCLE]
        part = nll[start : start + window]
        if (len(part) == window and float(part.mean()) > limit) or gram in seen:
            return start
        if len(gram) == CYCLE:
            seen.add(gram)
    return len(ids)


def counts_by_dose(
    completions: Sequence[Steered], verdicts: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """By dose: how many there were, how many were kept, how many each gate let fall.

    ``fell`` counts a completion at every gate that it falls through, ``first`` at the first alone.
    """
    rows = []
    for dose in sorted({completion.dose for completion in completions}):
        at_dose = [v for c, v in zip(completions, verdicts, strict=True) if c.dose == dose]
        fell = Counter(gate for failed in at_dose for gate in failed)
        first = Counter(failed[0] for failed in at_dose if failed)
        rows.append(
            {
                "dose": dose,
                "n": len(at_dose),
                "kept": sum(not failed for failed in at_dose),
                "fell": {gate: fell[gate] for gate in GATES if fell[gate]},
                "first": {gate: first[gate] for gate in GATES if first[gate]},
            }
        )
    return rows


def _above(value: float, limit: float | None, log: bool = False) -> bool:
    if limit is None:
        return False
    return bool(value > (np.log(limit) if log else limit))


def _below(value: float | int | None, limit: float | int | None) -> bool:
    return value is not None and limit is not None and bool(value < limit)
