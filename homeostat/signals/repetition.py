"""How much of a text repeats what it has already said."""

from __future__ import annotations

import unicodedata
from itertools import accumulate

import numpy as np
from jaxtyping import Bool

SPAN = 24.0  # letters; about five English words: text of that length rarely returns by chance
# Scripts that write no spaces say as much in a third of the signs, or less.
DENSE = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")
DENSE_WEIGHT = 3.0
CYCLES = 3  # "no no no": a pattern counts as a cycle from its third round on
SHORTEST_CYCLE = 8.0  # letters in all rounds together


def repetition(text: str) -> float:
    """Share of the text that copies an earlier part of it, 0..1; 1 for an empty text.

    A sign is a copy if it lies in a stretch of about five words that occurred before, or in the
    second or a later round of a cycle (the same pattern three times or more in a row). Both are
    properties of a place in the text and not of its length: half a loop scores one half, however
    long the text is, and short replies, code and lists score low although single words, markers and
    letters return all the time. Silence is no way to score well, so an empty text is 1.

    **Differs:** rep-n (Su et al. 2022, arXiv 2202.06417) and the largest share of one n-gram depend
    on n, on where words end, and on how long the text is: a loop of twenty words repeated ten
    times has no n-gram with a share above 1/20.
    """
    signs = " ".join(text.casefold().split())
    if not signs:
        return 1.0
    return float((_returning(signs) | _cycling(signs)).mean())


def _weight(sign: str) -> float:
    name = unicodedata.name(sign, "") if ord(sign) > 0x0E00 else ""
    return DENSE_WEIGHT if name.startswith(DENSE) else 1.0


def _returning(signs: str) -> Bool[np.ndarray, " N"]:
    """Signs within a stretch of at least `SPAN` letters that occurred before."""
    copied = np.zeros(len(signs), dtype=bool)
    reach = np.array([0.0, *accumulate(map(_weight, signs))])
    seen: set[str] = set()
    for start in range(len(signs)):
        end = int(np.searchsorted(reach, reach[start] + SPAN))
        if end > len(signs):
            break
        stretch = signs[start:end]
        if stretch in seen:
            copied[start:end] = True
        seen.add(stretch)
    return copied


def _cycling(signs: str) -> Bool[np.ndarray, " N"]:
    """Signs in the second and later rounds of a pattern that comes `CYCLES` times in a row."""
    copied = np.zeros(len(signs), dtype=bool)
    codes = np.array([ord(sign) for sign in signs])
    reach = np.array([0.0, *accumulate(map(_weight, signs))])
    # Rounds longer than a stretch are found by `_returning`.
    for period in range(1, min(int(SPAN), len(signs) // CYCLES) + 1):
        same = np.concatenate([[False], codes[period:] == codes[:-period], [False]])
        edges = np.flatnonzero(np.diff(same.astype(np.int8)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            rounds, letters = 1 + (end - start) / period, reach[end + period] - reach[start]
            if rounds >= CYCLES and letters >= SHORTEST_CYCLE:
                copied[start + period : end + period] = True
    return copied
