"""Do the intrinsic signals see the failures that they are meant to see?

The failures are made on the model itself, as replies to the bots' openings, and set beside its
ordinary sampled replies to the same openings:

    greedy_loop      greedy decoding after the reply's first words were said four times
    shuffled_words   the words of the ordinary reply in random order
    temperature_*    sampled far above 1
    noise_*          sampled and read with Gaussian noise on the residual stream of one block, its
                     norm a multiple of the base model's there: steering that went too far
    irrelevant       the ordinary reply to another opening
    empty, one_word  nothing but the end of the turn, or the first word alone

A signal's score is its distance from the set point, which is what the valence sees. AUROC 0.5 is
chance; below 0.5 the failure lies *nearer* to the set point than ordinary replies do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.models.adapters import Policy
from homeostat.models.hooks import noisy_residual
from homeostat.reward.valence import SetPoint
from homeostat.rollout.episodes import uniforms, validation_seeds
from homeostat.rollout.generate import Sampler
from homeostat.signals.intrinsic import intrinsic_signals
from homeostat.signals.probing.auroc import auroc, auroc_samples, interval95
from homeostat.signals.reader import SignalReader
from homeostat.types import Bots, Conversation, Progress, Trace, Turn, silent

TEMPERATURES = (2.0, 3.0)
NOISE = (0.5, 1.0, 2.0)  # multiples of the residual stream's norm
GREEDY = 1e-4  # temperature
PRIME_TOKENS, PRIME_TIMES = 3, 4  # how a loop begins: half of a reply of 24 tokens
ORDINARY, TOGETHER = "ordinary", "all, as weighted"
SEEN = 0.7  # AUROC from which a signal counts as seeing a failure, with an interval above chance


@dataclass(frozen=True)
class Replies:
    """One set of replies to the same openings, and the noise that they were made under."""

    talks: Sequence[Conversation]
    noise: float = 0.0


class Failures:
    """Makes the failures and measures how well every intrinsic signal tells them apart.

    ``reader`` must be calibrated. Everything is done with the adapter off.
    """

    def __init__(self, reader: SignalReader, bots: Bots, temperature: float, tokens: int) -> None:
        self.reader = reader
        self.policy: Policy = reader.policy
        self.bots = bots
        self.temperature = temperature
        self.tokens = tokens
        middle = len(reader.norm_layers) // 2
        self.layer = reader.norm_layers[middle]
        if reader.base_norms is None:
            raise ValueError("calibrate the reader before making failures.")
        self.norm = float(reader.base_norms[middle])

    def measure(
        self, count: int, points: Mapping[str, SetPoint], progress: Progress = silent
    ) -> list[dict[str, Any]]:
        """One row per signal and failure, from ``count`` openings.

        Args:
            count: Openings, each with one reply per failure.
            points: Set points of the signals that are to be judged; their weights count where all
                signals are taken together.
            progress: Told how many sets of replies are done.
        """
        seeds = validation_seeds(count)
        with self.policy.reference():
            made = self.make(seeds, progress)
            signals = {name: self.read(replies) for name, replies in made.items()}
        return [
            row
            for name, replies in made.items()
            if name != ORDINARY
            for row in separate(name, replies, signals[name], signals[ORDINARY], points, seeds)
        ]

    def make(self, seeds: Sequence[int], progress: Progress = silent) -> dict[str, Replies]:
        """Ordinary replies and every failure, in the order of ``seeds``."""
        openings = [self.bots.spawn(seed).opening() for seed in seeds]
        kinds = len(TEMPERATURES) + len(NOISE) + 2
        prompted = self._prompted(openings)
        done = 0

        def sampled(temperature: float, noise: float = 0.0, primes: Any = None) -> Replies:
            nonlocal done
            with self._noise(noise):
                sampler = self._prompted(openings) if noise else prompted.fork()
                replies = self._sample(sampler, seeds, temperature, primes)
            done += 1
            progress(done, kinds, sum(map(len, replies)))
            texts = [self.policy.tokenizer.decode(r, skip_special_tokens=True) for r in replies]
            return self._talks(openings, texts, replies, noise)

        ordinary = sampled(self.temperature)
        said = [talk.turns[1] for talk in ordinary.talks]
        end = self.policy.eos_ids
        begun = [[i for i in t.token_ids or () if i not in end][:PRIME_TOKENS] for t in said]
        primes = [ids * PRIME_TIMES for ids in begun]
        half = len(said) // 2
        made = {ORDINARY: ordinary, "greedy_loop": sampled(GREEDY, primes=primes)}
        made["shuffled_words"] = self._written(openings, said, self._shuffled(said, seeds))
        for t in TEMPERATURES:
            made[f"temperature_{t:g}"] = sampled(t)
        for scale in NOISE:
            made[f"noise_{scale:g}"] = sampled(self.temperature, scale)
        other = [*said[half:], *said[:half]]
        made["irrelevant"] = self._talks(
            openings, [t.text for t in other], [list(t.token_ids or ()) for t in other]
        )
        made["empty"] = self._written(openings, said, ["" for _ in said])
        made["one_word"] = self._written(
            openings, said, [" ".join(t.text.split()[:1]) for t in said]
        )
        return made

    def read(self, replies: Replies) -> list[dict[str, float]]:
        """The intrinsic signals of every reply; the reference reads without the noise."""
        traces = self.reader.trace(replies.talks)
        if replies.noise:
            with self._noise(replies.noise):
                noisy = self.reader.trace(replies.talks)
            traces = [
                replace(trace, ref_logprob_R=clean.ref_logprob_R)
                for trace, clean in zip(noisy, traces, strict=True)
            ]
        return [self._signals(t, c) for t, c in zip(traces, replies.talks, strict=True)]

    def _signals(self, trace: Trace, talk: Conversation) -> dict[str, float]:
        assert self.reader.base_norms is not None
        return intrinsic_signals(trace, 1, talk.turns[1].text, self.reader.base_norms)

    def _prompted(self, openings: Sequence[Turn]) -> Sampler:
        """A sampler that has read every opening."""
        sampler = Sampler(self.policy, len(openings))
        sampler.append([self.policy.encode(Conversation((turn,))).ids for turn in openings])
        return sampler

    def _sample(
        self,
        sampler: Sampler,
        seeds: Sequence[int],
        temperature: float,
        primes: Sequence[list[int]] | None,
    ) -> list[list[int]]:
        if primes:
            sampler.append(primes)
        primes = primes or [[] for _ in seeds]
        left = self.tokens - max(map(len, primes))
        numbers = np.stack([uniforms(seed, 0, max(1, left)) for seed in seeds])
        replies = sampler.sample(numbers, temperature)
        return [[*prime, *reply] for prime, reply in zip(primes, replies, strict=True)]

    def _noise(self, scale: float) -> Any:
        if not scale:
            return nullcontext()
        return noisy_residual(self.policy.trunk, self.layer, scale * self.norm, seed=0)

    def _shuffled(self, said: Sequence[Turn], seeds: Sequence[int]) -> list[str]:
        return [
            " ".join(np.random.default_rng([seed, 1]).permutation(turn.text.split()).tolist())
            for turn, seed in zip(said, seeds, strict=True)
        ]

    def _written(
        self, openings: Sequence[Turn], said: Sequence[Turn], texts: Sequence[str]
    ) -> Replies:
        """Texts as replies that end where the ordinary ones do; below two words they always end."""
        end = self.policy.eos_ids[0]
        ids = []
        for turn, text in zip(said, texts, strict=True):
            tokens = self.policy.tokenizer(text, add_special_tokens=False)["input_ids"]
            ended = len(text.split()) < 2 or (turn.token_ids or ())[-1:] == (end,)
            ids.append([*tokens, end] if ended else list(tokens))
        return self._talks(openings, texts, ids)

    def _talks(
        self,
        openings: Sequence[Turn],
        texts: Sequence[str],
        ids: Sequence[Sequence[int]],
        noise: float = 0.0,
    ) -> Replies:
        return Replies(
            [
                Conversation((opening, Turn("assistant", text.strip(), token_ids=tuple(tokens))))
                for opening, text, tokens in zip(openings, texts, ids, strict=True)
            ],
            noise,
        )


def separate(
    failure: str,
    replies: Replies,
    failed: Sequence[Mapping[str, float]],
    ordinary: Sequence[Mapping[str, float]],
    points: Mapping[str, SetPoint],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per signal and one for all of them together, as the valence weighs them."""
    example = {"prompt": replies.talks[0].turns[0].text, "example": replies.talks[0].turns[1].text}
    rows, sums = [], [np.zeros(len(ordinary)), np.zeros(len(failed))]
    for name, point in points.items():
        usual, off = (np.array([signals[name] for signals in side]) for side in (ordinary, failed))
        distances = [point.distance(values) for values in (usual, off)]
        sums = [total + point.weight * d for total, d in zip(sums, distances, strict=True)]
        raw = {
            "auroc_raw": _figures(usual, off, seeds)["auroc"],
            "mean": _mean(off),
            "ordinary_mean": _mean(usual),
        }
        figures = _figures(distances[0], distances[1], seeds)
        rows.append({"failure": failure, "signal": name} | figures | raw | example)
    if any(point.weight > 0 for point in points.values()):
        raw = {"auroc_raw": None, "mean": None, "ordinary_mean": None}
        figures = _figures(sums[0], sums[1], seeds)
        rows.append({"failure": failure, "signal": TOGETHER} | figures | raw | example)
    return rows


def best_signals(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per failure the signal that sees it best, its figures, and all signals that see it.

    The best of several signals is picked on the same replies, so its figure leans upwards a little.
    """
    best_by_failure: dict[str, dict[str, Any]] = {}
    for failure in dict.fromkeys(row["failure"] for row in rows):
        rows_of_failure = [r for r in rows if r["failure"] == failure and r["signal"] != TOGETHER]
        best = max(rows_of_failure, key=lambda row: -1.0 if row["auroc"] is None else row["auroc"])
        best_by_failure[failure] = {
            "best": best["signal"],
            "auroc": best["auroc"],
            "ci95": best["ci95"],
            "seen_by": [r["signal"] for r in rows_of_failure if _sees(r)],
        }
    return best_by_failure


def _sees(row: Mapping[str, Any]) -> bool:
    return row["auroc"] is not None and row["auroc"] >= SEEN and row["ci95"][0] > 0.5


def _figures(
    usual: Float[np.ndarray, " N"], off: Float[np.ndarray, " N"], seeds: Sequence[int]
) -> dict[str, Any]:
    """AUROC of failures over ordinary replies, with an interval over openings."""
    score = np.concatenate([usual, off])
    present = np.isfinite(score)
    label = np.repeat([0, 1], [len(usual), len(off)])[present]
    groups = np.tile(np.asarray(seeds), 2)[present]
    figure = auroc(label, score[present])
    interval = None
    if figure is not None:
        interval = interval95(auroc_samples(label, score[present], groups))
    failed = int(label.sum())
    return {"auroc": figure, "ci95": interval, "n": failed, "n_ordinary": len(label) - failed}


def _mean(values: Float[np.ndarray, " N"]) -> float | None:
    present = values[np.isfinite(values)]
    return float(present.mean()) if len(present) else None
