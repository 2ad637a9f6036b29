"""How positive a comment is, by a small lexicon of praise and blame: a scorer that nothing trains.

A probe of the reward would measure what was trained against itself.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

from homeostat.evals.matching import negates, words

REACH = 4  # words before a word of praise or blame in which a "not" turns it round
# After these a word of praise says what is missing: "it could be clearer, if it were vivid".
WISHES = frozenset(
    {"could", "should", "would", "might", "will", "i'll", "we'll", "you'll", "if", "need", "needs"}
)


@lru_cache(maxsize=1)
def lexicon() -> dict[str, int]:
    """Words of praise (1) and of blame (-1)."""
    text = (files("homeostat") / "data" / "praise_lexicon.json").read_text(encoding="utf-8")
    told = json.loads(text)
    return {
        words(word)[0].key: sign
        for kind, sign in (("praise", 1), ("blame", -1))
        for word in told[kind]
    }


def count_praise(comment: str, text: str = "") -> tuple[int, int]:
    """Words of praise less words of blame, and how many of both there are.

    A "not" shortly before a word in the same clause turns it round; a word that is only wished for
    ("could be clearer") counts for nothing, and so does one that the text itself has.

    Args:
        comment: What is scored.
        text: What it is about.
    """
    quoted = {word.key for word in words(text)}
    heard, signs = words(comment), []
    for place, word in enumerate(heard):
        sign = 0 if word.key in quoted else lexicon().get(word.key, 0)
        near = [w for w in heard[max(0, place - REACH) : place] if w.clause == word.clause]
        if sign and not any(w.text.lower() in WISHES for w in near):
            signs.append(-sign if any(map(negates, near)) else sign)
    return sum(signs), len(signs)
