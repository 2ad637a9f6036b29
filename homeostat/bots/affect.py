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
# Read off hand-made replies (tests/data/replies.jsonl) with the embedded model: whole ones have at
# most 5.3 nats per token, word salads at least 7.4; right ones owe 0.5 to the question (median).
FLUENT, BROKEN = (
    4.5,
    6.5,
)  # nats per token of a reply that is wholly coherent, and of one that is not
FULL_GAIN = 0.6  # nats per token that a wholly relevant reply owes to the user's words
DENIED = 0.25  # nats per token from which a reply has denied a claim
GRAMMATICAL = 0.2  # share of function words from which words are taken for sentences
LIST_WORDS = 6  # below so many words nothing can be said of that
FUNCTION_WORDS = frozenset(
    (  # noqa: SIM905 - a list of so many strings would be harder to read
        "a an the and or but of in on at to for from by with as is are was were be been it "
        "its this that these those you your i we they he she not no so if when than then "
        "there can will would could should may do does did have has had what which who how "
        "why because about into more most very just also my our their his her me us them"
    ).split()
)
FULL_RELEVANCE_HITS = 3


@dataclass(frozen=True)
class ReplyFeatures:
    """What a bot notices in a reply; every feature 0..1, agreement -1..1.

    Attributes:
        relevance: Words of the topic or of the bot's last message that the reply takes up; 1 from
            three different words on. With an appraisal: the mean of that and of how much likelier
            the user's words have made the reply, times the coherence.
        coherence: Share of different words among all words, times the share of characters that
            belong to words: loops and symbol noise score low, silence scores 0. With an appraisal:
            times how fluent the base finds it, so that a word salad scores low. A list without
            function words is no sentence, and scores by how near to one it is.
        length: Words, 1 from thirty on.
        agreement: 1 agrees, -1 contradicts, 0 neither or both.
        acknowledgement: 1 if it apologises, thanks or says that it understands.
        question: 1 if it asks something.
        novelty: Share of its different words that no earlier reply had.
    """

    relevance: float
    coherence: float
    length: float
    agreement: float
    acknowledgement: float
    question: float
    novelty: float = 1.0


@dataclass(frozen=True)
class Appraisal:
    """What the frozen base thinks of a reply, nats per token.

    Attributes:
        nll: -log p of the reply after what the user said.
        nll_alone: The same where the user's words were nothing in particular.
        denied: How much further than no answer it leans from what the user claimed to the true
            counterpart: the log-odds of these two sentences after it, less those after nothing.
            None where the user claimed nothing. That a reply grants a claim cannot be read off
            this way on a small model: its words say so, or nothing does.
    """

    nll: float
    nll_alone: float
    denied: float | None = None


# A reply that a bot neither likes nor dislikes; gains act on the distance to it.
INDIFFERENT = ReplyFeatures(0.5, 0.75, 0.5, 0.0, 0.0, 0.0)


def notice(
    reply: str,
    topic_words: Collection[str],
    appraisal: Appraisal | None = None,
    earlier: Collection[str] = (),
) -> ReplyFeatures:
    """The features of a reply.

    Args:
        reply: The assistant's text.
        topic_words: Lower-case words that a relevant reply would take up.
        appraisal: What the base thinks of it; None: its words alone count.
        earlier: Lower-case words of earlier replies.
    """
    text = reply.lower().replace("’", "'")  # noqa: RUF001
    words = WORD.findall(text)
    if not words:
        return ReplyFeatures(0.0, 0.0, 0.0, 0.0, 0.0, float("?" in text), novelty=0.0)
    visible = len("".join(text.split()))
    different = set(words)
    relevance = min(1.0, len(different & set(topic_words)) / FULL_RELEVANCE_HITS)
    coherence = len(different) / len(words) * min(1.0, sum(map(len, words)) / visible)
    if len(words) >= LIST_WORDS:
        small = sum(word.partition("'")[0] in FUNCTION_WORDS for word in words) / len(words)
        coherence *= min(1.0, small / GRAMMATICAL)
    agreement = float(bool(AGREEING.search(text))) - float(bool(CONTRADICTING.search(text)))
    if appraisal is not None:
        coherence *= _between(BROKEN, FLUENT, appraisal.nll)
        gain = _between(0.0, FULL_GAIN, appraisal.nll_alone - appraisal.nll)
        relevance = (relevance + gain) / 2 * coherence
        if appraisal.denied is not None and appraisal.denied > DENIED and agreement == 0:
            agreement = -1.0
    return ReplyFeatures(
        relevance=relevance,
        coherence=coherence,
        length=min(1.0, len(words) / FULL_LENGTH_WORDS),
        agreement=agreement,
        acknowledgement=float(bool(ACKNOWLEDGING.search(text))),
        question=float("?" in text),
        novelty=len(different - set(earlier)) / len(different),
    )


def _between(zero: float, one: float, value: float) -> float:
    """Where ``value`` lies on the way from ``zero`` to ``one``, cut off at both."""
    return min(1.0, max(0.0, (value - zero) / (one - zero)))


def content_words(text: str) -> set[str]:
    """Lower-case words of more than four letters, a crude stand-in for content words."""
    return {word for word in words_of(text) if len(word.replace("'", "")) > 4}


def words_of(text: str) -> set[str]:
    """The different words of a text, lower-case."""
    return set(WORD.findall(text.lower().replace("’", "'")))  # noqa: RUF001


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
