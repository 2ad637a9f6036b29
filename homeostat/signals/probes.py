"""Frozen linear probes that read the user's affect from hidden states.

One logistic regression per affect on the residual stream, averaged over the tokens of the user's
turn. Authors are split, never rows: layer and regularisation are chosen on the authors of the
validation part, the figure that is reported comes from authors that took no part in any choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from homeostat import __version__
from homeostat.config import AffectConfig
from homeostat.errors import HomeostatError
from homeostat.files import write_text, writing
from homeostat.models.adapters import Policy
from homeostat.models.cache import cache_folder
from homeostat.models.hooks import layers_at
from homeostat.signals.corpus import Corpus, load_corpus
from homeostat.signals.trace import batches_by_length, pooled_user_turns
from homeostat.types import Progress, silent

SPLIT = (0.6, 0.2, 0.2)
BOOTSTRAP = 500
NEITHER = -1  # the label of a row that belongs to neither class


@dataclass(frozen=True)
class ProbeScore:
    """How well one affect is read by authors that the probe has never seen.

    Attributes:
        layer: Decoder block that is read.
        regularisation: Inverse L2 strength.
        auroc: Area under the ROC curve on the test authors; 0.5 is chance.
        ci95: Its 95% bootstrap interval over authors.
        n_positive: Test rows with the affect.
        n: Test rows.
        validation_auroc: Best validation figure by layer.
    """

    layer: int
    regularisation: float
    auroc: float
    ci95: tuple[float, float]
    n_positive: int
    n: int
    validation_auroc: dict[str, float]


class AffectProbes:
    """Linear probes, frozen; belong to one model and refuse another."""

    def __init__(
        self,
        scores: dict[str, ProbeScore],
        weights: dict[str, Float[np.ndarray, " D"]],
        biases: dict[str, float],
        layers: Sequence[int],
        fingerprint: str,
        corpus: str,
    ) -> None:
        self.scores = scores
        self.weights = weights
        self.biases = biases
        self.layers = tuple(layers)
        self.fingerprint = fingerprint
        self.corpus = corpus

    @property
    def names(self) -> tuple[str, ...]:
        """The affects, in the order of `read`'s columns."""
        return tuple(self.weights)

    def read(self, hidden: Float[np.ndarray, "U P D"]) -> Float[np.ndarray, "U A"]:
        """Perceived affect of user turns: probabilities 0..1, sentiment -1..1.

        Args:
            hidden: Pooled residual stream at each of ``self.layers``.
        """
        columns = []
        for name, weight in self.weights.items():
            at = self.layers.index(self.scores[name].layer)
            logit = hidden[:, at].astype(np.float64) @ weight + self.biases[name]
            probability = 1 / (1 + np.exp(-logit))
            columns.append(2 * probability - 1 if name == "sentiment" else probability)
        return np.stack(columns, axis=1)

    def save(self, folder: Path) -> None:
        """Write ``probes.safetensors`` and ``probes.json``; both are needed to use them again."""
        folder.mkdir(parents=True, exist_ok=True)
        with writing(folder / "probes.safetensors") as path:
            save_file({name: np.ascontiguousarray(w) for name, w in self.weights.items()}, path)
        about = {
            "model": self.fingerprint,
            "corpus": self.corpus,
            "layers": self.layers,
            "bias": self.biases,
            "affects": {name: asdict(score) for name, score in self.scores.items()},
        }
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
        scores = {
            name: ProbeScore(**{**score, "ci95": tuple(score["ci95"])})
            for name, score in about["affects"].items()
        }
        weights = load_file(folder / "probes.safetensors")
        return cls(
            scores,
            {name: weights[name] for name in scores},
            about["bias"],
            about["layers"],
            about["model"],
            about["corpus"],
        )


def obtain_probes(
    policy: Policy,
    config: AffectConfig,
    author_groups: int | None = None,
    progress: Progress = silent,
) -> AffectProbes:
    """Probes for this model and corpus: from the cache, else fitted and kept there.

    Args:
        policy: Read with the adapter off.
        config: Corpus, affects and candidates.
        author_groups: How many author groups of the corpus to use; None = all.
        progress: Told how many utterances are read.
    """
    corpus = load_corpus(config.corpus, config.names, author_groups)
    layers = layers_at(config.layers, policy.num_layers)
    recipe = [
        __version__,
        policy.base.fingerprint,
        corpus.digest,
        layers,
        config.names,
        config.regularisation,
    ]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    folder = cache_folder("probes") / key
    if config.cache and (folder / "probes.json").is_file():
        return AffectProbes.load(folder, policy.base.fingerprint)
    hidden = utterance_states(policy, corpus, layers, progress)
    probes = fit_probes(hidden, corpus, layers, config, policy.base.fingerprint)
    if config.cache:
        probes.save(folder)
    return probes


def utterance_states(
    policy: Policy, corpus: Corpus, layers: Sequence[int], progress: Progress = silent
) -> Float[np.ndarray, "U P D"]:
    """The residual stream of every utterance, averaged over its tokens, adapter off."""
    streams = [policy.encode(u.conversation) for u in corpus.utterances]
    turns = [len(u.conversation.turns) - 1 for u in corpus.utterances]
    states: Float[np.ndarray, "U P D"] = np.empty(
        (len(streams), len(layers), policy.hidden_size), dtype=np.float32
    )
    done = 0
    for part in batches_by_length([len(s.ids) for s in streams], max_tokens=4096):
        pooled = pooled_user_turns(
            policy, [streams[i] for i in part], [turns[i] for i in part], layers
        )
        states[part] = pooled.cpu().numpy()
        done += len(part)
        progress(done, len(streams), sum(len(streams[i].ids) for i in part))
    return states


def fit_probes(
    hidden: Float[np.ndarray, "U P D"],
    corpus: Corpus,
    layers: Sequence[int],
    config: AffectConfig,
    fingerprint: str,
) -> AffectProbes:
    """One probe per affect; layer and regularisation from the validation authors."""
    part = split_by_group(corpus.groups)
    scores, weights, biases = {}, {}, {}
    for affect in config.names:
        label = np.array([u.labels.get(affect, NEITHER) for u in corpus.utterances])
        scores[affect], weights[affect], biases[affect] = _fit_one(
            affect, hidden, label, part, corpus.groups, layers, config.regularisation
        )
    return AffectProbes(scores, weights, biases, layers, fingerprint, corpus.source)


def split_by_group(groups: np.ndarray, seed: int = 0) -> Int[np.ndarray, " U"]:
    """0 (train), 1 (validation) or 2 (test) for every row; rows of one group stay together."""
    names = np.unique(groups)
    np.random.default_rng(seed).shuffle(names)
    bounds = np.round(np.cumsum(SPLIT)[:2] * len(names)).astype(int)
    part_of = {name: int(np.searchsorted(bounds, i, side="right")) for i, name in enumerate(names)}
    return np.array([part_of[group] for group in groups])


def auroc_interval(
    label: np.ndarray, score: np.ndarray, groups: np.ndarray, samples: int = BOOTSTRAP
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the AUROC, resampling groups."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    values: list[float] = []
    while len(values) < samples:
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if 0 < label[rows].sum() < len(rows):
            values.append(float(roc_auc_score(label[rows], score[rows])))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _fit_one(
    affect: str,
    hidden: np.ndarray,
    label: np.ndarray,
    part: np.ndarray,
    groups: np.ndarray,
    layers: Sequence[int],
    strengths: Sequence[float],
) -> tuple[ProbeScore, np.ndarray, float]:
    labelled = label != NEITHER
    for number, name in enumerate(("training", "validation", "test")):
        if len(np.unique(label[labelled & (part == number)])) < 2:
            raise HomeostatError(
                f"the {name} authors of the corpus have only one class of {affect}; add authors "
                "with and without it, or leave it out with signals.affect.names."
            )
    validation, test = (np.flatnonzero(labelled & (part == number)) for number in (1, 2))
    found = {}
    for at in range(len(layers)):
        for strength in strengths:
            weight, bias = _fit(hidden[part == 0, at], label[part == 0], strength)
            reading = hidden[validation, at] @ weight + bias
            found[at, strength] = float(roc_auc_score(label[validation], reading))
    at, strength = max(found, key=lambda key: found[key])
    weight, bias = _fit(hidden[part != 2, at], label[part != 2], strength)
    reading = hidden[test, at] @ weight + bias
    score = ProbeScore(
        layer=int(layers[at]),
        regularisation=float(strength),
        auroc=float(roc_auc_score(label[test], reading)),
        ci95=auroc_interval(label[test], reading, groups[test]),
        n_positive=int(label[test].sum()),
        n=len(test),
        validation_auroc={
            str(layer): max(found[i, s] for s in strengths) for i, layer in enumerate(layers)
        },
    )
    return score, weight, bias


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Standardised logistic regression, folded into weights for the raw hidden state.

    Rows of neither class (a text that is neither positive nor negative) hold the middle: each
    counts half for either class, so that the probe reads them near even odds. Where there are such
    rows the two classes weigh the same, or even odds would lean to the larger one.
    """
    either, neither = np.flatnonzero(y != NEITHER), np.flatnonzero(y == NEITHER)
    counts = np.bincount(y[either], minlength=2)
    balance = counts.sum() / (2 * counts) if len(neither) else np.ones(2)
    rows = np.concatenate([either, neither, neither])
    label = np.concatenate([y[either], np.ones(len(neither)), np.zeros(len(neither))])
    sample_weight = np.concatenate([balance[y[either]], np.full(2 * len(neither), 0.5)])
    scaler = StandardScaler().fit(x)
    regression = LogisticRegression(C=strength, max_iter=2000)
    regression.fit(scaler.transform(x)[rows], label, sample_weight)
    weight = regression.coef_[0] / scaler.scale_
    return weight, float(regression.intercept_[0] - weight @ scaler.mean_)
