"""A bot's latent affect: what it notices in a reply, and how that moves it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")  # noqa: RUF001 - people type both apostrophes
AGREEING = re.compile(
    r"\b(you(?:'re| are) (?:absolutely |quite |totally )?(?:right|correct)|i agree|exactly|"
    r"absolutely(?! not)|indeed|that(?:'s| is) (?:true|right|correct)|good point|"
    r"of course(?! not)|yes)\b"
)
CONTRADICTING = re.compile(
    r"\b(not (?:true|correct|accurate|quite|the case)|incorrect|wrong|actually|in fact|myth|"
    r"misconception|i disagree|however|contrary|no)\b"
)
ACKNOWLEDGING = re.compile(
    r"\b(sorry|apologi[sz]e|i (?:understand|see|hear)|thank(?:s| you)|that sounds|"
    r"(?:great|good|interesting) question|happy to|glad)\b"
)
FULL_LENGTH_WORDS = 30
FULL_RELEVANCE_HITS = 3


@dataclass(frozen=True)
class ReplyFeatures:
    """What a bot notices in a reply; every feature 0..1, agreement -1..1.

    Attributes:
        relevance: Words of the topic or of the bot's last message that the reply takes up; 1 from
            three different words on.
        coherence: Share of different words among all words, times the share of characters that
            belong to words: loops and symbol noise score low, silence scores 0.
        length: Words, 1 from thirty on.
        agreement: 1 agrees, -1 contradicts, 0 neither or both.
        acknowledgement: 1 if it apologises, thanks or says that it understands.
        question: 1 if it asks something.
    """

    relevance: float
    coherence: float
    length: float
    agreement: float
    acknowledgement: float
    question: float


# A reply that a bot neither likes nor dislikes; gains act on the distance to it.
INDIFFERENT = ReplyFeatures(0.5, 0.75, 0.5, 0.0, 0.0, 0.0)


def notice(reply: str, topic_words: Collection[str]) -> ReplyFeatures:
    """The features of a reply.

    Args:
        reply: The assistant's text.
        topic_words: Lower-case words that a relevant reply would take up.
    """
    text = reply.lower().replace("’", "'")  # noqa: RUF001
    words = WORD.findall(text)
    if not words:
        return ReplyFeatures(0.0, 0.0, 0.0, 0.0, 0.0, float("?" in text))
    visible = len("".join(text.split()))
    return ReplyFeatures(
        relevance=min(1.0, len(set(words) & set(topic_words)) / FULL_RELEVANCE_HITS),
        coherence=len(set(words)) / len(words) * min(1.0, sum(map(len, words)) / visible),
        length=min(1.0, len(words) / FULL_LENGTH_WORDS),
        agreement=float(bool(AGREEING.search(text))) - float(bool(CONTRADICTING.search(text))),
        acknowledgement=float(bool(ACKNOWLEDGING.search(text))),
        question=float("?" in text),
    )


def content_words(text: str) -> set[str]:
    """Lower-case words of more than four letters, a crude stand-in for content words."""
    words = WORD.findall(text.lower().replace("’", "'"))  # noqa: RUF001
    return {word for word in words if len(word.replace("'", "")) > 4}


def moved(
    affect: Mapping[str, float],
    home: Mapping[str, float],
    features: ReplyFeatures,
    gains: Mapping[str, Mapping[str, float]],
    inertia: float,
    noise: Mapping[str, float],
) -> dict[str, float]:
    """The affect after a reply: it drifts home, is pushed by the reply, and is kept in its range.

    x' = home + inertia (x - home) + sum_f gain_f (feature_f - indifferent_f) + noise

    Args:
        affect: Now; sentiment -1..1, others 0..1.
        home: The level that each affect drifts back to.
        features: What the bot noticed.
        gains: ``gains[affect][feature]``, affect units per feature unit.
        inertia: Share of the distance to home that lasts a turn, 0..1.
        noise: A seeded disturbance per affect.
    """
    push = {
        f.name: getattr(features, f.name) - getattr(INDIFFERENT, f.name) for f in fields(features)
    }
    result = {}
    for name, level in affect.items():
        target = home[name] + inertia * (level - home[name]) + noise.get(name, 0.0)
        target += sum(gain * push[feature] for feature, gain in gains.get(name, {}).items())
        result[name] = max(-1.0 if name == "sentiment" else 0.0, min(1.0, target))
    return result
