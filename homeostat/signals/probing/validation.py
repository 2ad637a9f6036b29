"""What a probe is worth: held-out figures, controls that could explain it away, and a verdict.

A probe is compared with what costs nothing: shuffled labels, random directions, a bag of words on
the same split, and whether there is a question mark. Every figure comes from authors that took no
part in fitting or choosing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from homeostat.signals.probing.auroc import auroc, auroc_samples, interval95
from homeostat.signals.probing.corpus import UNLABELLED, Corpus
from homeostat.signals.probing.probes import (
    TEST,
    TRAIN,
    VALIDATION,
    AffectProbes,
    Probe,
    fit,
    lacking_part,
    pooling_mask,
    split_by_group,
)

TRANSFER_FLOOR = 0.65
SHUFFLES, DIRECTIONS = 5, 100
BINS = 8
TEXT_STRENGTHS = (1.0, 10.0)
MIN_PER_CLASS = 5  # below that an AUROC within a subset says nothing
TRUSTED, WEAK, UNUSABLE = "trusted", "weak", "unusable"
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Sample:
    """A corpus with the hidden states of its utterances at some layers."""

    corpus: Corpus
    states: Float[np.ndarray, "U P E"]
    layers: tuple[int, ...]

    def at(self, layer: int) -> Float[np.ndarray, "U E"]:
        """The states at one layer, float64."""
        states: Float[np.ndarray, "U E"] = self.states[:, self.layers.index(layer)]
        return states.astype(np.float64)


@dataclass(frozen=True)
class ProbeReport:
    """How far one probe may be believed.

    Attributes:
        layer: Decoder block that it reads.
        pooling: What it reads there.
        regularisation: Inverse L2 strength.
        validation_auroc: By layer, on the validation authors.
        auroc: On the test authors; 0.5 is chance.
        ci95: Its 95% bootstrap interval over authors.
        n: Test rows.
        n_positive: Those with the affect.
        brier: Mean squared error of its probabilities on the test authors.
        brier_base_rate: The same for always saying the test authors' share of positives.
        reliability: Per bin the mean probability, the share of positives and the rows.
        controls: What a bag of words, a question mark and chance reach on the same rows.
        heldout_auroc: Of the frozen probe on the held-out file; None without one.
        heldout: The same figures and controls as on the test authors; None without a file.
        transfer: ``fitted on → tested on`` to figures, over all corpora at hand.
        verdict: ``trusted``, ``weak`` or ``unusable``.
        reason: Why.
    """

    layer: int
    pooling: str
    regularisation: float
    validation_auroc: dict[str, float]
    auroc: float
    ci95: Interval
    n: int
    n_positive: int
    brier: float
    brier_base_rate: float
    reliability: list[dict[str, float]]
    controls: dict[str, Any]
    heldout_auroc: float | None
    heldout: dict[str, Any] | None
    transfer: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdict: str = UNUSABLE
    reason: str = ""


def validate_probes(
    probes: AffectProbes, fitted_on: Sample, heldout: Sample | None, other: Sample | None
) -> dict[str, ProbeReport]:
    """A report per affect.

    Args:
        probes: What is reported on.
        fitted_on: The corpus that they were fitted on.
        heldout: A file that is tested once; None without one.
        other: A corpus from another source, which decides about transfer; None without one.
    """
    return {
        affect: _report(affect, probe, fitted_on, heldout, other)
        for affect, probe in probes.probes.items()
    }


def _report(
    affect: str, probe: Probe, fitted_on: Sample, heldout: Sample | None, other: Sample | None
) -> ProbeReport:
    label, part = fitted_on.corpus.labels(affect), split_by_group(fitted_on.corpus.groups)
    text = fit_text(fitted_on.corpus, label, part)
    test = np.flatnonzero((part == TEST) & (label >= 0))
    reading = _logit(probe, fitted_on)[test]
    figures = compare(fitted_on.corpus, affect, test, reading, text)
    chance = chance_controls(probe, fitted_on, label, part)
    away = None
    if heldout is not None and affect in heldout.corpus.affects:
        rows = np.flatnonzero(heldout.corpus.labels(affect) >= 0)
        away = compare(heldout.corpus, affect, rows, _logit(probe, heldout)[rows], text)
    known = [s for s in (fitted_on, heldout, other) if s is not None and affect in s.corpus.affects]
    samples = list({s.corpus.source: s for s in known}.values())
    transfer = cross_corpus(affect, probe, samples, text)
    moved = None
    if other is not None and affect in other.corpus.affects:
        moved = transfer[f"{fitted_on.corpus.source} → {other.corpus.source}"]
    verdict, reason = judge_probe(figures, away, moved)
    probability = 1 / (1 + np.exp(-reading))
    positive = label[test]
    rate = float(positive.mean())
    return ProbeReport(
        layer=probe.layer,
        pooling=probe.pooling,
        regularisation=probe.regularisation,
        validation_auroc=dict(probe.validation_auroc),
        auroc=figures["auroc"],
        ci95=figures["ci95"],
        n=len(test),
        n_positive=int(positive.sum()),
        brier=float(((probability - positive) ** 2).mean()),
        brier_base_rate=rate * (1 - rate),
        reliability=reliability(probability, positive),
        controls=chance | {k: v for k, v in figures.items() if k not in ("auroc", "ci95")},
        heldout_auroc=None if away is None else away["auroc"],
        heldout=away,
        transfer=transfer,
        verdict=verdict,
        reason=reason,
    )


def judge_probe(
    figures: Mapping[str, Any], away: Mapping[str, Any] | None, moved: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Verdict and reason.

    Args:
        figures: From `compare`, on the test authors.
        away: The same on the held-out file; None without one.
        moved: The frozen probe on a corpus from another source; None if there is none.
    """
    if figures["ci95"] is None or figures["ci95"][0] <= 0.5:
        return UNUSABLE, "on unseen authors its interval includes chance"
    if moved is not None and (moved["ci95"] is None or moved["ci95"][0] <= 0.5):
        return UNUSABLE, "on another corpus its interval includes chance"
    doubts = []
    for compared, where in ((figures, "unseen authors"), (away, "the held-out file")):
        if compared is None:
            continue
        gain = compared["probe_minus_text_ci95"]
        if gain is None or gain[0] <= 0:
            doubts.append(f"it is not shown to beat a bag of words on {where}")
    if moved is None:
        doubts.append("no corpus from another source was at hand to test transfer")
    elif moved["auroc"] <= TRANSFER_FLOOR:
        doubts.append(f"on another corpus it does not pass {TRANSFER_FLOOR}")
    if doubts:
        return WEAK, "; ".join(doubts)
    return TRUSTED, f"it beats a bag of words on unseen authors, and {TRANSFER_FLOOR} elsewhere"


def compare(
    corpus: Corpus, affect: str, rows: Int[np.ndarray, " N"], reading: np.ndarray, text: Any
) -> dict[str, Any]:
    """The probe beside a bag of words and beside the question mark, on the same rows.

    Args:
        corpus: Where the rows come from.
        affect: Whose label counts.
        rows: Rows labelled 0 or 1.
        reading: The probe's logit for each of them.
        text: The fitted bag of words, from `fit_text`.
    """
    label, groups = corpus.labels(affect)[rows], corpus.groups[rows]
    texts = [corpus.utterances[i].text for i in rows]
    worded = text.decision_function(texts)
    marked = np.array([float("?" in t) for t in texts])
    probe_draws, text_draws = (auroc_samples(label, score, groups) for score in (reading, worded))
    inside = np.flatnonzero(marked)
    enough = len(inside) and np.bincount(label[inside], minlength=2).min() >= MIN_PER_CLASS
    by_probe, by_text = auroc(label, reading), auroc(label, worded)
    return {
        "auroc": by_probe,
        "ci95": interval95(probe_draws),
        "n": len(rows),
        "n_positive": int(label.sum()),
        "text_only": by_text,
        "text_only_ci95": interval95(text_draws),
        "probe_minus_text": None if by_probe is None or by_text is None else by_probe - by_text,
        "probe_minus_text_ci95": interval95(probe_draws - text_draws),
        "question_mark": auroc(label, marked),
        "within_question_marks": auroc(label[inside], reading[inside]) if enough else None,
        "text_only_within_question_marks": auroc(label[inside], worded[inside]) if enough else None,
        "n_within_question_marks": len(inside),
    }


def chance_controls(
    probe: Probe, fitted_on: Sample, label: np.ndarray, part: np.ndarray
) -> dict[str, Any]:
    """What the same recipe reaches without a signal to find, on the test authors.

    ``shuffled_labels`` is the mean AUROC of probes fitted on permuted labels; ``random_direction``
    that of random directions in the standardised states, each taken with its better sign.
    """
    rng = np.random.default_rng(0)
    x = fitted_on.at(probe.layer)[:, pooling_mask(probe.pooling, fitted_on.states.shape[-1]) > 0]
    fitted = np.flatnonzero((part != TEST) & (label != UNLABELLED))
    test = np.flatnonzero((part == TEST) & (label >= 0))
    shuffled = []
    for _ in range(SHUFFLES):
        weight, bias = fit(x[fitted], rng.permutation(label[fitted]), probe.regularisation)
        shuffled.append(auroc(label[test], x[test] @ weight + bias))
    scale = x[fitted].std(axis=0)
    standardised = (x[test] - x[fitted].mean(axis=0)) / np.where(scale > 0, scale, 1)
    random = [
        auroc(label[test], standardised @ rng.standard_normal(x.shape[1]))
        for _ in range(DIRECTIONS)
    ]
    folded = [max(a, 1 - a) for a in random if a is not None]
    return {
        "shuffled_labels": _mean_of_known([a for a in shuffled if a is not None]),
        "random_direction": _mean_of_known(folded),
    }


def fit_text(corpus: Corpus, label: np.ndarray, part: np.ndarray) -> Any:
    """A bag of words and pairs of words with logistic regression, as strong as we can make it.

    Weighted by TF-IDF; the regularisation is chosen on the same validation authors as the probe's,
    then it is fitted on the same rows. It sees the message alone.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = np.array(corpus.texts, dtype=object)
    rows = {name: np.flatnonzero((part == name) & (label >= 0)) for name in (TRAIN, VALIDATION)}

    def fitted(on: np.ndarray, strength: float) -> Any:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        model = make_pipeline(words, LogisticRegression(C=strength, solver="liblinear"))
        return model.fit(texts[on], label[on])

    def figure(strength: float) -> float:
        model, check = fitted(rows[TRAIN], strength), rows[VALIDATION]
        return auroc(label[check], model.decision_function(texts[check])) or 0.0

    best = max(TEXT_STRENGTHS, key=figure)
    return fitted(np.concatenate([rows[TRAIN], rows[VALIDATION]]), best)


def cross_corpus(
    affect: str, probe: Probe, samples: Sequence[Sample], text: Any
) -> dict[str, dict[str, Any]]:
    """Fitted on one corpus, tested on another: probe and bag of words, for every pair.

    Layer, pooling and regularisation are those of ``probe`` throughout, which belongs to the first
    corpus, as ``text`` does; both are used there as they are. On its own corpus a probe is tested
    on the test authors, on another one on all rows. Nothing is fitted on a corpus of which
    a part has only one class.
    """
    transfer = {}
    for index, source in enumerate(samples):
        label, part = source.corpus.labels(affect), split_by_group(source.corpus.groups)
        if index == 0:
            weight, bias, words = probe.weight, probe.bias, text
        elif lacking_part(label, part):
            continue
        else:
            words = fit_text(source.corpus, label, part)
            mask = pooling_mask(probe.pooling, source.states.shape[-1])
            rows = np.flatnonzero((part != TEST) & (label != UNLABELLED))
            states = source.at(probe.layer)[rows] * mask
            weight, bias = fit(states, label[rows], probe.regularisation)
        for target in samples:
            goal = target.corpus.labels(affect)
            rows = np.flatnonzero((goal >= 0) & ((part == TEST) if target is source else True))
            reading = target.at(probe.layer)[rows] @ weight + bias
            figures = compare(target.corpus, affect, rows, reading, words)
            kept = ("auroc", "ci95", "n", "text_only", "text_only_ci95")
            name = f"{source.corpus.source} → {target.corpus.source}"
            transfer[name] = {key: figures[key] for key in kept}
    return transfer


def reliability(probability: np.ndarray, positive: np.ndarray) -> list[dict[str, float]]:
    """Bins of equally many rows: mean probability, share of positives, rows."""
    order = np.argsort(probability, kind="stable")
    return [
        {
            "predicted": float(probability[rows].mean()),
            "observed": float(positive[rows].mean()),
            "n": len(rows),
        }
        for rows in np.array_split(order, min(BINS, len(order)))
    ]


def _logit(probe: Probe, sample: Sample) -> Float[np.ndarray, " U"]:
    reading: Float[np.ndarray, " U"] = sample.at(probe.layer) @ probe.weight + probe.bias
    return reading


def _mean_of_known(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
