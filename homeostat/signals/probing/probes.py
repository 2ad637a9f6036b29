"""Frozen linear probes that read the user's affect from hidden states.

One logistic regression per affect on the residual stream over the user's turn, whose targets may be
anything from 0 to 1 (how much of the affect a message shows). Authors are split,
never rows: layer, pooling and regularisation are chosen on the authors of the validation part,
probabilities are calibrated on cross-fitted readings of the training and validation authors, and
whatever is reported (`validation.py`) comes from authors that took no part in any choice.

scikit-learn takes a second to import, and is when there is something to fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num
from safetensors.numpy import load_file, save_file

from homeostat.config.signals import AffectConfig
from homeostat.errors import HomeostatError
from homeostat.files import write_text, writing
from homeostat.signals.probing.auroc import auroc
from homeostat.signals.probing.corpus import NEITHER, Corpus

SPLIT = (0.6, 0.2, 0.2)
TRAIN, VALIDATION, TEST = 0, 1, 2
SELECTION_ROWS = 4000  # training rows that candidates are compared on; the probe itself gets all
FOLDS = 5
# What a graded message counts beside one with a class, whose target lies further out. Read off
# replies to held-out users: at 1 r was 0.50 for sentiment and 0.53 for frustration, at 5 0.59 and
# 0.62 (48 users, 8 replies each).
GRADED_WEIGHT = 5.0


@dataclass(frozen=True)
class Probe:
    """One linear probe on raw hidden states: probability = sigmoid(states @ weight + bias).

    Attributes:
        layer: Decoder block that is read.
        pooling: ``mean`` over the user's turn, its ``last`` token, or ``both``.
        regularisation: Inverse L2 strength C.
        weight: Over mean and last token; 0 where the pooling does not look.
        bias: In logits.
        validation_auroc: Figure of the validation authors by layer, best pooling.
    """

    layer: int
    pooling: str
    regularisation: float
    weight: Float[np.ndarray, " E"]
    bias: float
    validation_auroc: Mapping[str, float]


class AffectProbes:
    """Linear probes, frozen; belong to one model and refuse another."""

    def __init__(self, probes: Mapping[str, Probe], fingerprint: str, corpus: str) -> None:
        self.probes = dict(probes)
        self.fingerprint = fingerprint
        self.corpus = corpus
        self.layers = tuple(sorted({probe.layer for probe in self.probes.values()}))

    @property
    def names(self) -> tuple[str, ...]:
        """The affects, in the order of `read`'s columns."""
        return tuple(self.probes)

    def read(self, hidden: Float[np.ndarray, "U P E"]) -> Float[np.ndarray, "U A"]:
        """Perceived affect of user turns: probabilities 0..1, sentiment -1..1.

        Args:
            hidden: Pooled residual stream at each of ``self.layers``.
        """
        columns = []
        for name, probe in self.probes.items():
            states = hidden[:, self.layers.index(probe.layer)].astype(np.float64)
            probability = 1 / (1 + np.exp(-(states @ probe.weight + probe.bias)))
            columns.append(2 * probability - 1 if name == "sentiment" else probability)
        return np.stack(columns, axis=1) if columns else np.zeros((len(hidden), 0))

    def save(self, folder: Path) -> None:
        """Write ``probes.safetensors`` and ``probes.json``; both are needed to use them again."""
        folder.mkdir(parents=True, exist_ok=True)
        with writing(folder / "probes.safetensors") as path:
            save_file({n: np.ascontiguousarray(p.weight) for n, p in self.probes.items()}, path)
        affects = {
            name: {
                "layer": probe.layer,
                "pooling": probe.pooling,
                "regularisation": probe.regularisation,
                "bias": probe.bias,
                "validation_auroc": dict(probe.validation_auroc),
            }
            for name, probe in self.probes.items()
        }
        about = {"model": self.fingerprint, "corpus": self.corpus, "affects": affects}
        write_text(folder / "probes.json", json.dumps(about, indent=2))

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> AffectProbes:
        """Probes written by `save`.

        Raises:
            HomeostatError: They were fitted on another model.
        """
        about = json.loads((folder / "probes.json").read_text())
        if about["model"] != fingerprint:
            raise HomeostatError(
                f"the probes in {folder} were fitted on another model; hidden states of different "
                "models do not mean the same. Fit them again on this one."
            )
        weights = load_file(folder / "probes.safetensors")
        probes = {n: Probe(weight=weights[n], **values) for n, values in about["affects"].items()}
        return cls(probes, about["model"], about["corpus"])


def fit_probes(
    states: Float[np.ndarray, "U P E"],
    corpus: Corpus,
    layers: Sequence[int],
    config: AffectConfig,
    fingerprint: str,
) -> AffectProbes:
    """One probe for every affect of ``config`` that the corpus labels.

    Args:
        states: The corpus' utterances at each of ``layers``.
        corpus: With its groups.
        layers: Candidate decoder blocks.
        config: Affects and the other candidates.
        fingerprint: Of the model that the states came from.

    Raises:
        HomeostatError: A part of the split has only one class of an affect.
    """
    part = split_by_group(corpus.groups)
    probes = {}
    for affect in (name for name in config.names if name in corpus.affects):
        target = corpus.targets(affect)
        _require_classes(affect, corpus.labels(affect), part)
        candidates = select(states, target, part, layers, config)
        layer, pooling, strength = max(candidates, key=lambda key: candidates[key])
        rows = np.flatnonzero((part != TEST) & np.isfinite(target))
        x = states[rows, layers.index(layer)].astype(np.float64) * pooling_mask(
            pooling, states.shape[-1]
        )
        weight, bias = fit_calibrated(x, target[rows], corpus.groups[rows], strength)
        by_layer = {
            str(at): max(v for (block, *_), v in candidates.items() if block == at) for at in layers
        }
        probes[affect] = Probe(int(layer), pooling, strength, weight, bias, by_layer)
    return AffectProbes(probes, fingerprint, corpus.source)


def split_by_group(groups: np.ndarray, seed: int = 0) -> Int[np.ndarray, " U"]:
    """`TRAIN`, `VALIDATION` or `TEST` for every row; rows of one group stay together."""
    names, member = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    bounds = np.round(np.cumsum(SPLIT)[:2] * len(names)).astype(int)
    part_of_name = np.empty(len(names), dtype=np.int64)
    part_of_name[order] = np.searchsorted(bounds, np.arange(len(names)), side="right")
    return part_of_name[member]


def select(
    states: Float[np.ndarray, "U P E"],
    target: Num[np.ndarray, " U"],
    part: Int[np.ndarray, " U"],
    layers: Sequence[int],
    config: AffectConfig,
) -> dict[tuple[int, str, float], float]:
    """What every candidate (layer, pooling, regularisation) is worth on the validation authors.

    Every layer and pooling is tried at the middle regularisation, then the other regularisations at
    the best of them. The figure is that of `agreement`.
    """
    train = np.flatnonzero((part == TRAIN) & np.isfinite(target))
    if len(train) > SELECTION_ROWS:
        train = np.random.default_rng(0).choice(train, SELECTION_ROWS, replace=False)
    check = np.flatnonzero((part == VALIDATION) & (target >= 0))
    strengths = sorted(config.regularisation)
    middle = strengths[len(strengths) // 2]
    figures: dict[tuple[int, str, float], float] = {}

    def try_out(layer: int, pooling: str, strength: float) -> None:
        at, seen = layers.index(layer), pooling_mask(pooling, states.shape[-1]) > 0
        weight, bias = fit(states[train, at][:, seen], target[train], strength)
        reading = states[check, at][:, seen] @ weight + bias
        figures[layer, pooling, strength] = agreement(target[check], reading)

    for layer in layers:
        for pooling in config.pooling:
            try_out(layer, pooling, middle)
    layer, pooling, _ = max(figures, key=lambda key: figures[key])
    for strength in strengths:
        if strength != middle:
            try_out(layer, pooling, strength)
    return figures


def agreement(target: Num[np.ndarray, " N"], reading: Float[np.ndarray, " N"]) -> float:
    """How well a reading orders messages, 0.5 by chance and 1 at best.

    The AUROC of those with a class; where others have a level, its mean with (1 + r) / 2 of those.
    """
    classed = np.isin(target, (0, 1))
    area = auroc(target[classed].astype(int), reading[classed])
    figures = [0.5 if area is None else area]
    levels, read = target[~classed], reading[~classed]
    if len(levels) > 2 and np.ptp(levels) > 0 and np.ptp(read) > 0:
        figures.append((1 + float(np.corrcoef(levels, read)[0, 1])) / 2)
    return float(np.mean(figures))


def fit_calibrated(
    x: Float[np.ndarray, "N E"], y: Num[np.ndarray, " N"], groups: np.ndarray, strength: float
) -> tuple[Float[np.ndarray, " E"], float]:
    """Weight and bias whose sigmoid is a calibrated probability.

    Every group is read by a probe that was fitted on the other groups; a logistic regression of the
    label on that reading gives slope and offset (Platt 1999), which are folded into the probe that
    is fitted on all groups.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    reading = np.full(len(y), np.nan)
    for fitted, held_out in GroupKFold(FOLDS).split(x, y, groups):
        if {0, 1} <= set(y[fitted]):
            # The penalty weighs as much against fewer rows as in the probe itself.
            weight, bias = fit(x[fitted], y[fitted], strength * len(y) / len(fitted))
            reading[held_out] = x[held_out] @ weight + bias
    read = np.isfinite(reading)
    rows, label, row_weight = anchored(y[read])
    platt = LogisticRegression(C=1e6).fit(reading[read][rows, None], label, row_weight)
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    weight, bias = fit(x, y, strength)
    return slope * weight, slope * bias + offset


def fit(
    x: Float[np.ndarray, "N E"], y: Num[np.ndarray, " N"], strength: float
) -> tuple[Float[np.ndarray, " E"], float]:
    """Standardised logistic regression, folded into a weight and bias for the raw states."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, label, row_weight = anchored(y)
    scaler = StandardScaler().fit(x)
    regression = LogisticRegression(C=strength, max_iter=2000)
    regression.fit(scaler.transform(x)[rows], label, row_weight)
    weight = regression.coef_[0] / scaler.scale_
    return weight, float(regression.intercept_[0] - weight @ scaler.mean_)


def anchored(
    y: Num[np.ndarray, " N"],
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Rows, labels and weights to fit on: a target between 0 and 1 counts that much for class 1.

    What it lacks to 1 counts for class 0. A text that is neither positive nor negative counts half
    for either, so that the probe reads it near even odds; where there are such rows the two classes
    weigh the same, or even odds would lean to the larger one.
    """
    whole = np.flatnonzero((y == 0) | (y == 1))
    between = np.flatnonzero((y != 0) & (y != 1))
    counts = np.bincount(y[whole].astype(int), minlength=2)
    balance = counts.sum() / (2 * counts) if (y == NEITHER).any() else np.ones(2)
    neither = y[between] == NEITHER
    share, count = np.where(neither, 0.5, y[between]), np.where(neither, 1.0, GRADED_WEIGHT)
    return (
        np.concatenate([whole, between, between]),
        np.concatenate([y[whole], np.ones(len(between)), np.zeros(len(between))]).astype(float),
        np.concatenate([balance[y[whole].astype(int)], count * share, count * (1 - share)]),
    )


def pooling_mask(pooling: str, width: int) -> Float[np.ndarray, " E"]:
    """1 where ``mean``, ``last`` or ``both`` look in the pooled states, else 0."""
    mask = np.zeros(width)
    mask[: width // 2] = pooling in ("mean", "both")
    mask[width // 2 :] = pooling in ("last", "both")
    return mask


def lacking_part(label: Int[np.ndarray, " U"], part: Int[np.ndarray, " U"]) -> str | None:
    """The first part of the split that has not both classes; None if all have."""
    for number, name in ((TRAIN, "training"), (VALIDATION, "validation"), (TEST, "test")):
        if not {0, 1} <= set(label[part == number]):
            return name
    return None


def _require_classes(affect: str, label: np.ndarray, part: np.ndarray) -> None:
    if name := lacking_part(label, part):
        raise HomeostatError(
            f"the {name} authors of the corpus have only one class of {affect}; add authors "
            "with and without it, or leave it out with signals.affect.names."
        )
