"""Can the reward be earned, before anyone trains: does the loop from reply to reading hold?

Held-out users get several replies of the base each, to the same words, and one made of the words of
such a reply in random order. What differs between replies to the same words is all that a reply can
change; what differs between users is noise to a trainer.

Everything is resampled by users, never by replies.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.reward.valence import SetPoint
from homeostat.rollout.appraisal import answers
from homeostat.rollout.candidates import play_candidates
from homeostat.rollout.episodes import headroom_seeds
from homeostat.signals.probing.auroc import interval95
from homeostat.signals.probing.validation import TRUSTED, UNUSABLE, WEAK
from homeostat.signals.reader import SignalReader
from homeostat.types import Bots, Conversation, Episode, Progress, Turn, silent

RESAMPLES = 2000
LEAST_GAIN = 0.05  # tolerances times weight: what is less than that is not worth training for
EARNED, NOT_EARNED, BY_NONSENSE = "can be earned", "cannot be earned", "earned by nonsense"
# Of the correlation between what a user feels and what is read, within replies to the same words:
# what makes a reading trusted, and the least lower bound of one that is not unusable.
TRUSTED_R, LEAST_R = 0.6, 0.2


@dataclass(frozen=True)
class Shown:
    """What several replies to the same words have done, whatever is paid for it.

    Attributes:
        names: Of the signals.
        replies_SKN: Every signal after each of K replies to each of S users; NaN where missing.
        salads_SN: The same after each user's word salad.
        loop: See `Headroom`.
    """

    names: Sequence[str]
    replies_SKN: Float[np.ndarray, "S K N"]
    salads_SN: Float[np.ndarray, "S N"]
    loop: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Shown:
        """What `record` has written."""
        replies, salads = (np.array(record[key], dtype=float) for key in ("replies", "salads"))
        return cls(tuple(record["names"]), replies, salads, record["loop"])

    @property
    def record(self) -> dict[str, Any]:
        """JSON-ready, but for NaN."""
        values = {"replies": self.replies_SKN.tolist(), "salads": self.salads_SN.tolist()}
        return {"names": list(self.names), **values, "loop": self.loop}


@dataclass(frozen=True)
class Headroom:
    """What a reply decides, by term of the reward and by affect.

    Attributes:
        terms: Per term ``reply_share`` of its variance, what the best of the replies would gain
            (``best_of_8`` where there are eight) and what a word salad would, in valence; each
            with its ``ci95``, and a ``verdict``.
        loop: Per affect ``within_r`` between what the user truly feels and what is read, within
            replies to the same words, its ``ci95``, ``n_seeds``, ``n_replies``, the share of
            replies with a word-identical twin (``identical_answers``), and the line from what is
            felt to what is read (``slope``, ``offset``).
    """

    terms: Mapping[str, Mapping[str, Any]]
    loop: Mapping[str, Mapping[str, Any]]


def loop_verdicts(loop: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Verdict and reason for every affect whose true level was known."""
    verdicts = {}
    for name, found in loop.items():
        r, interval = found["within_r"], found["ci95"]
        if not found["n_seeds"] or interval is None:
            continue
        said = f"r = {r:.2f} within replies to the same words"
        if r >= TRUSTED_R:
            verdicts[name] = (TRUSTED, f"{said}, {TRUSTED_R:g} or more")
        elif interval[0] > LEAST_R:
            verdicts[name] = (WEAK, f"{said}, below {TRUSTED_R:g}")
        else:
            verdicts[name] = (
                UNUSABLE,
                f"{said}, from {interval[0]:.2f}; {LEAST_R:g} is too little",
            )
    return verdicts


def show_replies(
    reader: SignalReader,
    bots: Bots,
    rollout: RolloutConfig,
    users: int,
    replies: int,
    progress: Progress = silent,
) -> Shown:
    """Play one turn of each user several times as the base, and read what comes of it.

    Args:
        reader: Its policy's adapter is switched off.
        bots: Play the users.
        rollout: Length of a reply.
        users: Held-out ones, of a range of seeds that nothing else uses.
        replies: Of each.
        progress: Told how many replies are done.
    """
    seeds = headroom_seeds(users)
    one_turn = RolloutConfig(turns=1, max_new_tokens=rollout.max_new_tokens)
    with reader.policy.reference():
        groups = play_candidates(reader.policy, bots, seeds, replies, one_turn, progress)
        salads = as_salads(reader.policy, bots, [group[0] for group in groups])
        episodes = [episode for group in groups for episode in group]
        readings = reader.measure([*episodes, *salads])
    names = readings[0].signals.names
    last_EN = np.array([reading.signals.values[-1] for reading in readings])
    perceived_EA = np.array([reading.perceived[-1] for reading in readings[: len(episodes)]])
    return Shown(
        names=names,
        replies_SKN=last_EN[: len(episodes)].reshape(users, replies, len(names)),
        salads_SN=last_EN[len(episodes) :],
        loop=affect_loop(groups, perceived_EA, reader.affects),
    )


def headroom_of(shown: Shown, points: Mapping[str, SetPoint], felt: bool = False) -> Headroom:
    """What of a reward a reply decides.

    Args:
        shown: What replies have done.
        points: The terms.
        felt: Whether the levels of affects are felt ones, see `as_read`.
    """
    points = as_read(points, shown.loop) if felt else points
    terms = {}
    for name, point in points.items():
        column = shown.names.index(name)
        replies_SK, salad_S = (v[..., column] for v in (shown.replies_SKN, shown.salads_SN))
        terms[name] = term_headroom(point.valence(replies_SK), point.valence(salad_S))
    return Headroom(terms, shown.loop)


def as_read(
    points: Mapping[str, SetPoint], loop: Mapping[str, Mapping[str, Any]]
) -> dict[str, SetPoint]:
    """Set points of felt levels, moved to where they are read; those of other signals stay.

    An affect whose reading does not rise with what is felt has no such place, and is left out. So
    is one of which nothing is known.
    """
    moved = {}
    for name, point in points.items():
        if name not in loop:
            moved[name] = point
        elif (loop[name]["slope"] or 0.0) > 0:
            moved[name] = point.as_read(loop[name]["offset"], loop[name]["slope"])
    return moved


def as_salads(policy: Policy, bots: Bots, episodes: Sequence[Episode]) -> list[Episode]:
    """Each episode with its first reply's words in random order, and what the user answers to that.

    A reply without words stays what it is.
    """
    texts = []
    for episode in episodes:
        words = episode.conversation.turns[1].text.split()
        random.Random(episode.seed).shuffle(words)
        texts.append(" ".join(words))
    players = [bots.spawn(episode.seed) for episode in episodes]
    asked = [Conversation((player.opening(),)) for player in players]
    salads = []
    for episode, text, answer in zip(
        episodes, texts, answers(policy, players, asked, texts), strict=True
    ):
        opening, reply = episode.conversation.turns[:2]
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ids or reply.token_ids or ()
        talk = Conversation((opening, Turn("assistant", text, token_ids=tuple(ids)), answer))
        salads.append(replace(episode, conversation=talk, tokens=policy.encode(talk)))
    return salads


def term_headroom(
    term_SK: Float[np.ndarray, "S K"], salad_S: Float[np.ndarray, " S"]
) -> dict[str, Any]:
    """What one term leaves to earn.

    A difference between replies counts as earned by nonsense where a salad does better than the
    base, and as nothing where the best of the replies gains less than `LEAST_GAIN`.

    Args:
        term_SK: Of each user and reply, in valence, <= 0.
        salad_S: The same of each user's salad.
    """
    present = np.isfinite(term_SK).all(axis=1) & np.isfinite(salad_S)
    term_SK, salad_S = term_SK[present], salad_S[present]
    if len(term_SK) < 2:
        return {"verdict": None, "n_seeds": len(term_SK)}
    draws = np.random.default_rng(0).integers(len(term_SK), size=(RESAMPLES, len(term_SK)))
    best_S = term_SK.max(axis=1) - term_SK.mean(axis=1)
    nonsense_S = salad_S - term_SK.mean(axis=1)
    share = np.array([reply_share(term_SK[rows]) for rows in draws])
    replies = term_SK.shape[1]
    best_ci, salad_ci = (
        interval95(best_S[draws].mean(axis=1)),
        interval95(nonsense_S[draws].mean(axis=1)),
    )
    by_nonsense = salad_ci is not None and salad_ci[0] > 0
    earned = best_ci is not None and best_ci[0] > LEAST_GAIN
    verdict = BY_NONSENSE if by_nonsense else EARNED if earned else NOT_EARNED
    return {
        "reply_share": {"mean": _or_none(reply_share(term_SK)), "ci95": interval95(share)},
        f"best_of_{replies}": {"mean": float(best_S.mean()), "ci95": best_ci},
        "salad": {"mean": float(nonsense_S.mean()), "ci95": salad_ci},
        "verdict": verdict,
        "n_seeds": len(term_SK),
    }


def reply_share(values_SK: Float[np.ndarray, "S K"]) -> float:
    """Share of the variance that lies between replies to the same words, 0..1; NaN without any.

    The variance within users over that plus the variance of users' true means, by the method of
    moments of a one-way random-effects model (intraclass correlation, subtracted from 1).
    """
    within = float(values_SK.var(axis=1, ddof=1).mean())
    between = max(0.0, float(values_SK.mean(axis=1).var(ddof=1)) - within / values_SK.shape[1])
    return within / (within + between) if within + between > 0 else float("nan")


def affect_loop(
    groups: Sequence[Sequence[Episode]], read_EA: Float[np.ndarray, "E A"], affects: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Whether what a reply does to a user's feelings can be read from the user's words.

    Args:
        groups: Per user the episodes of its replies.
        read_EA: What was read from the answer of every episode, in their order.
        affects: Columns of ``read_EA``.
    """
    answered = [[episode.conversation.turns[-1] for episode in group] for group in groups]
    counts = [Counter(turn.text for turn in group) for group in answered]
    twins = [
        [n[turn.text] > 1 for turn in group] for n, group in zip(counts, answered, strict=True)
    ]
    identical = float(np.mean([twin for group in twins for twin in group])) if twins else None
    loop = {}
    for column, name in enumerate(affects):
        true = np.array(
            [[(turn.affect or {}).get(name, np.nan) for turn in group] for group in answered]
        )
        read = read_EA[:, column].reshape(true.shape)
        known = np.isfinite(true).all(axis=1) & np.isfinite(read).all(axis=1)
        true, read = true[known], read[known]
        draws = np.random.default_rng(0).integers(max(len(true), 1), size=(RESAMPLES, len(true)))
        samples = np.array([within_r(true[rows], read[rows]) for rows in draws])
        loop[name] = {
            "within_r": _or_none(within_r(true, read)),
            "ci95": interval95(samples),
            "n_seeds": len(true),
            "n_replies": int(true.size),
            "identical_answers": identical,
            **_line(true.ravel(), read.ravel()),
        }
    return loop


def _line(true: Float[np.ndarray, " N"], read: Float[np.ndarray, " N"]) -> dict[str, float | None]:
    """Slope and offset of the least squares of ``read`` on ``true``; None without variance."""
    if len(true) < 2 or np.ptp(true) == 0:
        return {"slope": None, "offset": None}
    slope, offset = np.polyfit(true, read, 1)
    return {"slope": float(slope), "offset": float(offset)}


def within_r(x_SK: Float[np.ndarray, "S K"], y_SK: Float[np.ndarray, "S K"]) -> float:
    """Correlation of two readings, each user's mean taken off both; NaN without variance."""
    if x_SK.size == 0:
        return float("nan")
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x_SK, y_SK))
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
