from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from configs import affect_config

from homeostat.signals.probing import validation
from homeostat.signals.probing.corpus import NEITHER, UNLABELLED, Corpus, Utterance
from homeostat.signals.probing.probes import (
    TEST,
    TRAIN,
    VALIDATION,
    AffectProbes,
    Probe,
    fit_probes,
    split_by_group,
)
from homeostat.signals.probing.validation import (
    MIN_PER_CLASS,
    Sample,
    chance_controls,
    compare,
    cross_corpus,
    fit_text,
    judge_probe,
    reliability,
    validate_probes,
)
from homeostat.types import Conversation, Turn

LAYERS, WIDTH = (3, 4), 8


@pytest.fixture(autouse=True)
def fewer_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "DIRECTIONS", 40)


def made_corpus(labels: Sequence[int], texts: Sequence[str], source: str = "here") -> Corpus:
    """Five rows per author; rows labelled `UNLABELLED` carry no label at all, as in a file."""
    utterances = tuple(
        Utterance(
            Conversation((Turn("user", text),)),
            f"g{i // 5}",
            {} if label == UNLABELLED else {"boredom": int(label)},
        )
        for i, (label, text) in enumerate(zip(labels, texts, strict=True))
    )
    return Corpus(utterances, source, source)


def coins(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=n)


def planted(
    label: np.ndarray, texts: Sequence[str], source: str = "here", size: float = 3.0
) -> Sample:
    """The first number of the second layer shows the label."""
    rng = np.random.default_rng(len(label))
    states = rng.normal(size=(len(label), len(LAYERS), WIDTH)).astype(np.float32)
    states[:, 1, 0] += size * (label == 1)
    return Sample(made_corpus(label.tolist(), texts, source), states, LAYERS)


def looking(*weight: float, bias: float = 0.0) -> Probe:
    """A probe on the second layer that was written down."""
    padded = np.array([*weight, *[0.0] * (WIDTH - len(weight))])
    return Probe(4, "mean", 0.01, padded, bias, {"4": 0.9})


def slow_auroc(label: Sequence[int], score: Sequence[float]) -> float:
    pairs = [
        (up > down) + 0.5 * (up == down)
        for up, one in zip(score, label, strict=True)
        for down, zero in zip(score, label, strict=True)
        if (one, zero) == (1, 0)
    ]
    return sum(pairs) / len(pairs)


class LongIsBored:
    """In place of the bag of words: the longer, the more bored."""

    def decision_function(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(len(text)) for text in texts])


# --- compare --------------------------------------------------------------------------------------


def test_compare_by_hand() -> None:
    """Four of six rows. Probe: 3 of 4 pairs; words: all lengths equal but one; marks: 1 of 2."""
    labels = [1, UNLABELLED, 0, NEITHER, 1, 0]
    corpus = made_corpus(labels, ["aaaa", "a", "aa?a", "aaaaaaa", "aa?", "aaaa"])
    reading = np.array([2.0, 1.0, -1.0, -3.0])  # of rows 0, 2, 4, 5: labels 1, 0, 1, 0
    found = compare(corpus, "boredom", np.array([0, 2, 4, 5]), reading, LongIsBored())
    assert found["auroc"] == 3 / 4
    assert found["text_only"] == (0.5 + 0.5 + 0 + 0) / 4
    assert found["probe_minus_text"] == 1 / 2
    assert found["question_mark"] == (0 + 0.5 + 0.5 + 1) / 4
    assert (found["n"], found["n_positive"], found["n_within_question_marks"]) == (4, 2, 2)


def test_compare_has_paired_intervals() -> None:
    """In every resample the probe is perfect and the words say nothing."""
    label = np.array([0, 1] * 20)
    corpus = made_corpus(label.tolist(), ["same"] * 40)
    found = compare(corpus, "boredom", np.arange(40), label.astype(float), LongIsBored())
    assert found["ci95"] == (1.0, 1.0)
    assert found["text_only_ci95"] == (0.5, 0.5)
    assert found["probe_minus_text_ci95"] == (0.5, 0.5)
    own = compare(corpus, "boredom", np.arange(40), np.full(40, 4.0), LongIsBored())
    assert own["probe_minus_text_ci95"] == (0.0, 0.0)


def test_compare_resamples_authors() -> None:
    """One author is read right, the other wrong: everything is possible."""
    label = np.array([0, 1, 0, 1, 0] * 2)
    reading = np.where(np.arange(10) < 5, label, -label).astype(float)
    found = compare(
        made_corpus(label.tolist(), ["?"] * 10), "boredom", np.arange(10), reading, LongIsBored()
    )
    assert found["ci95"] == (0.0, 1.0)


@pytest.mark.parametrize(("positive", "told"), [(MIN_PER_CLASS, True), (MIN_PER_CLASS - 1, False)])
def test_within_question_marks_wants_enough_of_either_class(positive: int, told: bool) -> None:
    """Rows without a question mark are bored and read as such; within, the reading is turned."""
    inside = np.array([1] * positive + [0] * 8)
    label = np.concatenate([inside, np.ones(9, dtype=np.int64), [0]])
    texts = ["why?"] * len(inside) + ["so."] * 10
    reading = np.where(np.array(texts) == "so.", label, -label).astype(float)
    corpus = made_corpus(label.tolist(), texts)
    found = compare(corpus, "boredom", np.arange(len(label)), reading, LongIsBored())
    assert found["within_question_marks"] == (0.0 if told else None)
    assert found["text_only_within_question_marks"] == (0.5 if told else None)
    assert found["n_within_question_marks"] == positive + 8


def test_probe_that_knows_only_the_question_mark_says_nothing_within_them() -> None:
    label = np.array([1] * 8 + [0] * 2 + [1] * 2 + [0] * 8 + [1] * 6 + [0] * 6)
    texts = ["eh?"] * 8 + ["no?"] * 2 + ["eh."] * 2 + ["no."] * 8 + ["what?"] * 12
    reading = np.array([float("?" in text) for text in texts])
    corpus = made_corpus(label.tolist(), texts)
    found = compare(corpus, "boredom", np.arange(32), reading, LongIsBored())
    assert found["within_question_marks"] == 0.5
    assert found["auroc"] == found["question_mark"] > 0.6


def test_no_question_marks_at_all() -> None:
    corpus = made_corpus([0, 1] * 10, ["so"] * 20)
    found = compare(corpus, "boredom", np.arange(20), np.zeros(20), LongIsBored())
    assert found["within_question_marks"] is None
    assert found["question_mark"] == 0.5
    assert found["n_within_question_marks"] == 0


def test_texts_of_a_corpus_are_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered again for every row, they would take an hour on a corpus of 50,000."""
    calls = []

    def gather(corpus: Corpus) -> list[str]:
        calls.append(1)
        return [u.text for u in corpus.utterances]

    monkeypatch.setattr(Corpus, "texts", property(gather))
    corpus = made_corpus([0, 1] * 10, ["so"] * 20)
    compare(corpus, "boredom", np.arange(20), np.zeros(20), LongIsBored())
    assert len(calls) <= 1


# --- chance ---------------------------------------------------------------------------------------


def test_chance_controls_find_nothing_in_noise() -> None:
    """Six hundred test rows: the standard error of a chance AUROC is 0.024."""
    label = coins(3000)
    sample = planted(label, ["so"] * 3000, size=0.0)
    found = chance_controls(looking(1.0), sample, label, split_by_group(sample.corpus.groups))
    assert found["shuffled_labels"] == pytest.approx(0.5, abs=0.06)
    assert 0.5 <= found["random_direction"] < 0.56


def test_random_directions_take_the_better_sign() -> None:
    """Along one number there are two directions only, and one of them is as good as the probe."""
    label = coins(400)
    states = np.random.default_rng(0).normal(size=(400, 1, 2)).astype(np.float32)
    states[:, 0, 1] = 5 - states[:, 0, 1] - 2 * label  # what shows the label, upside down
    sample = Sample(made_corpus(label.tolist(), ["so"] * 400), states, (4,))
    part = np.repeat([TRAIN, TEST], 200)
    probe = Probe(4, "last", 0.1, np.array([0.0, 1.0]), 0.0, {})
    found = chance_controls(probe, sample, label, part)
    best = slow_auroc(label[200:].tolist(), (-states[200:, 0, 1]).tolist())
    assert found["random_direction"] == pytest.approx(best)
    assert best > 0.8


def test_shuffled_labels_are_those_of_the_fitted_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.array([1, 0, NEITHER, UNLABELLED, 1, 0, 0, 1] * 15)
    sample = planted(label, ["so"] * 120)
    part = np.repeat([TRAIN, VALIDATION, TEST], 40)
    used = np.flatnonzero((np.arange(120) < 80) & (label != UNLABELLED))
    seen = []

    def record(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
        np.testing.assert_array_equal(x, sample.states[used, 1, : WIDTH // 2])  # mean, layer 4
        assert strength == 0.01
        seen.append(y.tolist())
        return np.zeros(WIDTH // 2), 0.0

    monkeypatch.setattr(validation, "fit", record)
    chance_controls(looking(1.0), sample, label, part)
    assert len(seen) == validation.SHUFFLES
    assert all(sorted(y) == sorted(label[used].tolist()) for y in seen)
    assert len({tuple(y) for y in [*seen, label[used].tolist()]}) == len(seen) + 1


# --- the bag of words -----------------------------------------------------------------------------


def test_text_is_fitted_on_training_and_validation_rows_only() -> None:
    label = np.array([1, 0, 1, 0, NEITHER, UNLABELLED] * 30)
    part = np.repeat([TRAIN, VALIDATION, TEST], 60)
    names = ("training", "validation", "test")
    kinds = {1: "dull", 0: "great", NEITHER: "neutral", UNLABELLED: "unjudged"}
    texts = [f"{kinds[k]} {names[p]}" for k, p in zip(label.tolist(), part.tolist(), strict=True)]
    model = fit_text(made_corpus(label.tolist(), texts), label, part)
    assert set(model[0].vocabulary_) == {
        "dull",
        "great",
        "training",
        "validation",
        "dull training",
        "great training",
        "dull validation",
        "great validation",
    }
    dull, great = model.decision_function(["dull dull dull", "great"])
    assert dull > 0 > great


@pytest.mark.parametrize(("figures", "chosen"), [((0.6, 0.9), 10.0), ((0.9, 0.6), 1.0)])
def test_text_strength_is_chosen_on_the_validation_rows(
    figures: tuple[float, ...], chosen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, part = np.array([0, 1] * 30), np.repeat([TRAIN, VALIDATION, TEST], 20)
    told = iter(figures)

    def told_figure(checked: np.ndarray, score: np.ndarray) -> float:
        assert len(checked) == len(score) == 20
        return next(told)

    monkeypatch.setattr(validation, "auroc", told_figure)
    corpus = made_corpus(label.tolist(), [f"word{i % 7}" for i in range(60)])
    found = fit_text(corpus, label, part)[-1].C
    assert found == chosen


# --- other corpora --------------------------------------------------------------------------------


def test_cross_corpus_uses_what_was_fitted_on_the_first_corpus() -> None:
    """In the second corpus the states say the opposite, and other words do."""
    first = planted(coins(500), [f"{'dull' if y else 'great'} one" for y in coins(500)], "a")
    second = planted(coins(300), [f"{'meh' if y else 'wow'} two" for y in coins(300)], "b")
    second.states[:, 1, 0] *= -1
    text = fit_text(first.corpus, coins(500), split_by_group(first.corpus.groups))
    probe = looking(2.0, bias=7.0)
    found = cross_corpus("boredom", probe, [first, second], text)
    assert list(found) == ["a → a", "a → b", "b → a", "b → b"]
    assert {k: v["n"] for k, v in found.items()} == {
        "a → a": 100,  # the test authors
        "a → b": 300,
        "b → a": 500,
        "b → b": 60,
    }
    reading = second.states[:, 1, 0].tolist()
    assert found["a → b"]["auroc"] == pytest.approx(slow_auroc(coins(300).tolist(), reading))
    assert found["a → b"]["auroc"] < 0.1
    assert found["b → a"]["auroc"] < 0.1
    assert found["a → a"]["auroc"] > 0.9
    assert found["b → b"]["auroc"] > 0.9
    words = {k: v["text_only"] for k, v in found.items()}
    assert words == {"a → a": 1.0, "a → b": 0.5, "b → a": 0.5, "b → b": 1.0}
    assert set(found["a → a"]) == {"auroc", "ci95", "n", "text_only", "text_only_ci95"}


def test_one_corpus_is_tested_on_itself_only() -> None:
    sample = planted(coins(200), ["so"] * 200)
    assert list(cross_corpus("boredom", looking(1.0), [sample], LongIsBored())) == ["here → here"]


# --- verdict --------------------------------------------------------------------------------------

WORDS = "it is not shown to beat a bag of words on"
GOOD = {"auroc": 0.9, "ci95": (0.8, 0.95), "probe_minus_text_ci95": (0.01, 0.2)}
NO_GAIN = {**GOOD, "probe_minus_text_ci95": (0.0, 0.2)}
CHANCE = {**GOOD, "ci95": (0.5, 0.7)}
UNKNOWN = {**GOOD, "ci95": None}
LOW = {"auroc": 0.65, "ci95": (0.6, 0.7)}


@pytest.mark.parametrize(
    ("figures", "away", "moved", "verdict", "reason"),
    [
        (GOOD, None, GOOD, "trusted", "it beats a bag of words on unseen authors, and 0.65"),
        (GOOD, GOOD, GOOD, "trusted", "elsewhere"),
        (GOOD, None, {**LOW, "auroc": 0.651}, "trusted", ""),
        (CHANCE, GOOD, GOOD, "unusable", "on unseen authors its interval includes chance"),
        (UNKNOWN, GOOD, GOOD, "unusable", "on unseen authors"),
        (GOOD, GOOD, CHANCE, "unusable", "on another corpus its interval includes chance"),
        (GOOD, None, UNKNOWN, "unusable", "on another corpus"),
        (NO_GAIN, None, GOOD, "weak", f"{WORDS} unseen authors"),
        ({**GOOD, "probe_minus_text_ci95": None}, None, GOOD, "weak", f"{WORDS} unseen authors"),
        (GOOD, NO_GAIN, GOOD, "weak", f"{WORDS} the held-out file"),
        (GOOD, CHANCE, GOOD, "trusted", ""),  # only what the words reach counts there
        (GOOD, None, None, "weak", "no corpus from another source was at hand to test transfer"),
        (GOOD, GOOD, LOW, "weak", "on another corpus it does not pass 0.65"),
        (
            NO_GAIN,
            NO_GAIN,
            LOW,
            "weak",
            f"{WORDS} unseen authors; {WORDS} the held-out file; on another corpus it does not",
        ),
    ],
)
def test_judge(
    figures: Mapping[str, Any],
    away: Mapping[str, Any] | None,
    moved: Mapping[str, Any] | None,
    verdict: str,
    reason: str,
) -> None:
    found = judge_probe(figures, away, moved)
    assert found[0] == verdict
    assert reason in found[1]


def test_reasons_do_not_name_what_was_not_found_wanting() -> None:
    assert judge_probe(NO_GAIN, GOOD, GOOD)[1] == f"{WORDS} unseen authors"
    assert judge_probe(GOOD, NO_GAIN, GOOD)[1] == f"{WORDS} the held-out file"


# --- reliability ----------------------------------------------------------------------------------


def test_reliability_by_hand() -> None:
    """Seventeen rows in eight bins: three in the first, two in each other."""
    probability = np.arange(17) / 20
    positive = np.array([0, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1])
    shuffled = np.random.default_rng(0).permutation(17)
    found = reliability(probability[shuffled], positive[shuffled])
    assert [b["n"] for b in found] == [3, 2, 2, 2, 2, 2, 2, 2]
    assert [b["observed"] for b in found] == pytest.approx(
        [1 / 3, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
    )
    assert [b["predicted"] for b in found] == pytest.approx(
        [0.05, 0.175, 0.275, 0.375, 0.475, 0.575, 0.675, 0.775]
    )


def test_reliability_of_few_rows_has_a_bin_each() -> None:
    found = reliability(np.array([0.9, 0.1, 0.4]), np.array([1, 0, 1]))
    assert found == [
        {"predicted": 0.1, "observed": 0.0, "n": 1},
        {"predicted": 0.4, "observed": 1.0, "n": 1},
        {"predicted": 0.9, "observed": 1.0, "n": 1},
    ]


# --- the whole report -----------------------------------------------------------------------------


def fitted(sample: Sample) -> AffectProbes:
    config = affect_config(names=["boredom"], pooling=["mean", "both"], regularisation=[0.01, 0.1])
    return fit_probes(sample.states, sample.corpus, LAYERS, config, "m")


def test_report_is_about_the_test_authors_alone() -> None:
    own = planted(coins(300), ["so?"] * 300)
    probes = fitted(own)
    report = validate_probes(probes, own, None, None)["boredom"]
    test = np.flatnonzero(split_by_group(own.corpus.groups) == TEST)
    label, probe = coins(300)[test], probes.probes["boredom"]
    logit = own.states[test, 1].astype(float) @ probe.weight + probe.bias
    p = [1 / (1 + math.exp(-z)) for z in logit.tolist()]
    assert (report.layer, report.pooling) == (4, probe.pooling)
    assert report.validation_auroc == probe.validation_auroc
    assert report.auroc == pytest.approx(slow_auroc(label.tolist(), logit.tolist()))
    assert (report.n, report.n_positive) == (60, int(label.sum()))
    errors = [(a - y) ** 2 for a, y in zip(p, label.tolist(), strict=True)]
    assert report.brier == pytest.approx(sum(errors) / 60)
    share = label.sum() / 60
    assert report.brier_base_rate == pytest.approx(share * (1 - share))
    assert report.reliability[0]["predicted"] == pytest.approx(sum(sorted(p)[:8]) / 8)
    assert report.heldout is report.heldout_auroc is None
    assert list(report.transfer) == ["here → here"]
    assert report.verdict == "weak"
    assert report.reason == "no corpus from another source was at hand to test transfer"
    assert {"shuffled_labels", "random_direction", "text_only", "question_mark"} <= set(
        report.controls
    )
    assert not {"auroc", "ci95"} & set(report.controls)


def test_other_corpus_decides_about_transfer() -> None:
    own, other = planted(coins(300), ["so"] * 300), planted(coins(100), ["so"] * 100, "there")
    probes = fitted(own)
    report = validate_probes(probes, own, None, other)["boredom"]
    assert (report.verdict, report.heldout_auroc) == ("trusted", None)
    other.states[:, 1, 0] *= 0
    assert validate_probes(probes, own, None, other)["boredom"].verdict == "unusable"


def test_heldout_file_is_read_by_the_frozen_probe_on_all_rows() -> None:
    label = coins(100)
    label[::10] = NEITHER
    own, away = planted(coins(300), ["so"] * 300), planted(label, ["so"] * 100, "there")
    probes = fitted(own)
    report = validate_probes(probes, own, away, away)["boredom"]
    rows = np.flatnonzero(label >= 0)
    reading = away.states[rows, 1].astype(float) @ probes.probes["boredom"].weight
    expected = slow_auroc(label[rows].tolist(), reading.tolist())
    assert report.heldout_auroc == pytest.approx(expected)
    assert report.heldout is not None
    assert report.heldout["n"] == len(rows)
    assert report.transfer["here → there"]["auroc"] == pytest.approx(expected)
    assert len(report.transfer) == 4
    assert report.verdict == "trusted"


def test_heldout_file_without_the_affect_is_left_out() -> None:
    own = planted(coins(300), ["so"] * 300)
    away = planted(np.ones(100, dtype=np.int64), ["so"] * 100, "there")
    report = validate_probes(fitted(own), own, away, away)["boredom"]
    assert (report.heldout, report.heldout_auroc) == (None, None)
    assert list(report.transfer) == ["here → here"]
    assert report.verdict == "weak"


@pytest.mark.parametrize("lacking", ["train", "validation", "test", "test rows"])
def test_heldout_file_may_lack_a_class_in_some_part(lacking: str) -> None:
    """It is read by the frozen probe all the same; nothing can be fitted on it."""
    own, n = planted(coins(300), ["so"] * 300), 60
    part = split_by_group(made_corpus([0] * n, ["so"] * n).groups)
    number = {"train": TRAIN, "validation": VALIDATION}.get(lacking, TEST)
    missing = UNLABELLED if lacking == "test rows" else 0
    label = np.where(part == number, missing, np.arange(n) % 2)
    away = planted(label, ["so"] * n, "there")
    report = validate_probes(fitted(own), own, away, away)["boredom"]
    assert report.heldout_auroc is not None
    assert report.heldout_auroc > 0.9
    assert report.transfer["here → there"]["auroc"] == report.heldout_auroc
    assert report.verdict == "trusted"
