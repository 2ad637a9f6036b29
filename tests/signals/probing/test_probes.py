from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from configs import affect_config
from sklearn.linear_model import LogisticRegression

from homeostat.config.signals import AffectConfig
from homeostat.errors import HomeostatError
from homeostat.signals.probing.corpus import NEITHER, UNLABELLED, Corpus, Utterance
from homeostat.signals.probing.probes import (
    TEST,
    TRAIN,
    VALIDATION,
    AffectProbes,
    Probe,
    fit,
    fit_calibrated,
    fit_probes,
    pooling_mask,
    select,
    split_by_group,
)
from homeostat.types import Conversation, Turn

LAYERS, WIDTH = (2, 5, 7), 12  # WIDTH: mean and last token, six numbers each
STRENGTHS = [0.0003, 0.003, 0.03]


def made_corpus(labels: Sequence[int], affect: str = "boredom", per_group: int = 10) -> Corpus:
    """Rows labelled `UNLABELLED` carry no label at all, as in a file."""
    utterances = tuple(
        Utterance(
            Conversation((Turn("user", f"text {i}"),)),
            f"g{i // per_group}",
            {} if label == UNLABELLED else {affect: int(label)},
        )
        for i, label in enumerate(labels)
    )
    return Corpus(utterances, "digest", "made up")


def settings(*names: str, pooling: Sequence[str] = ("mean", "last", "both")) -> AffectConfig:
    return affect_config(names=list(names), pooling=list(pooling), regularisation=STRENGTHS)


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Hidden states that know nothing."""
    drawn = np.random.default_rng(seed).normal(size=(n, len(LAYERS), WIDTH))
    return drawn.astype(np.float32)


def coins(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=n)


def planted(n: int, halves: Sequence[str], size: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """States whose middle layer shows the label, in the named halves only."""
    hidden, label = noise(n), coins(n)
    for half in halves:
        at = {"mean": 1, "last": WIDTH // 2 + 1}[half]
        hidden[:, 1, at] += size * label
    return hidden, label


def by_hand() -> AffectProbes:
    """Two probes at different layers whose readings can be written down."""
    return AffectProbes(
        {
            "sentiment": Probe(7, "both", 0.1, np.array([1.0, -2.0]), 0.5, {"7": 0.8}),
            "boredom": Probe(2, "mean", 0.3, np.array([0.5, 0.0]), -1.0, {"2": 0.7, "7": 0.6}),
        },
        "model a",
        "made up",
    )


# --- reading and keeping --------------------------------------------------------------------------


def test_readings_by_hand() -> None:
    """Sentiment: logits 2 - 0.5 + 0.5 and 0.5; boredom: 2 - 1 and -1."""
    hidden = np.zeros((2, 2, 2), dtype=np.float32)
    hidden[0] = [[4.0, 9.0], [2.0, 0.25]]
    probes = by_hand()
    assert (probes.names, probes.layers) == (("sentiment", "boredom"), (2, 7))
    sentiment, boredom = probes.read(hidden).T
    assert sentiment.tolist() == pytest.approx(
        [2 / (1 + math.exp(-2)) - 1, 2 / (1 + math.exp(-0.5)) - 1]
    )
    assert boredom.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


def test_no_probes_read_no_columns() -> None:
    assert AffectProbes({}, "m", "c").read(np.zeros((3, 0, 4), dtype=np.float32)).shape == (3, 0)


def test_saved_probes_are_the_same_in_the_same_order(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "probes"
    by_hand().save(folder)
    loaded = AffectProbes.load(folder, "model a")
    assert (loaded.names, loaded.layers) == (("sentiment", "boredom"), (2, 7))
    assert (loaded.fingerprint, loaded.corpus) == ("model a", "made up")
    for name, probe in by_hand().probes.items():
        found = loaded.probes[name]
        assert np.array_equal(found.weight, probe.weight)
        assert found.weight.dtype == np.float64
        own, theirs = ({**vars(p), "weight": None} for p in (probe, found))
        assert own == theirs


def test_probes_of_another_model_are_refused(tmp_path: Path) -> None:
    by_hand().save(tmp_path)
    with pytest.raises(HomeostatError) as caught:
        AffectProbes.load(tmp_path, "model b")
    assert f"the probes in {tmp_path} were fitted on another model" in str(caught.value)


# --- the split ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("count", "sizes"), [(25, [15, 5, 5]), (120, [72, 24, 24])])
def test_groups_are_never_split_and_60_20_20(count: int, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(3)
    names = [f"g{i}" for i in range(count)]
    groups = rng.permutation([*names, *rng.choice(names, 400)])
    part = split_by_group(groups, seed)
    parts = {name: set(part[groups == name].tolist()) for name in names}
    assert all(len(found) == 1 for found in parts.values())
    assert [
        sum(found == {n} for found in parts.values()) for n in (TRAIN, VALIDATION, TEST)
    ] == sizes


def test_split_depends_on_the_seed_alone() -> None:
    groups = np.array([f"g{i % 25}" for i in range(100)])
    assert np.array_equal(split_by_group(groups), split_by_group(groups))
    assert not np.array_equal(split_by_group(groups), split_by_group(groups, seed=1))


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("halves", "pooling", "best"),
    [
        (("last",), ("mean", "last"), "last"),
        (("mean",), ("mean", "last"), "mean"),
        (("mean", "last"), ("mean", "last", "both"), "both"),
    ],
)
def test_planted_layer_and_pooling_are_found(
    halves: tuple[str, ...], pooling: tuple[str, ...], best: str
) -> None:
    hidden, label = planted(1500, halves)
    part = np.repeat([TRAIN, VALIDATION, TEST], 500)
    found = select(hidden, label, part, LAYERS, settings("boredom", pooling=pooling))
    layer, chosen, _ = max(found, key=lambda key: found[key])
    assert (layer, chosen) == (5, best)
    blind = [v for (at, how, _), v in found.items() if at != 5 or (how not in (*halves, "both"))]
    assert max(blind) < 0.65 < 0.85 < found[5, best, STRENGTHS[1]]
    # every layer and pooling at the middle strength, the other two strengths at the best of them
    assert len(found) == len(LAYERS) * len(pooling) + 2
    assert {key[2] for key in found if key[:2] == (5, best)} == set(STRENGTHS)


def test_figures_of_the_choice_are_those_of_the_validation_authors() -> None:
    """The label is turned round for them, so an AUROC near 1 becomes one near 0."""
    hidden, label = planted(1200, ("last",))
    part = np.repeat([TRAIN, VALIDATION, TEST], 400)
    label[part == VALIDATION] = 1 - label[part == VALIDATION]
    found = select(hidden, label, part, LAYERS, settings("boredom", pooling=["last"]))
    assert found[5, "last", STRENGTHS[1]] < 0.15


@pytest.mark.parametrize(
    ("pooling", "mask"),
    [("mean", [1, 1, 0, 0]), ("last", [0, 0, 1, 1]), ("both", [1, 1, 1, 1])],
)
def test_pooling_mask(pooling: str, mask: list[int]) -> None:
    assert pooling_mask(pooling, 4).tolist() == mask


def test_probe_says_what_was_chosen_and_looks_only_there() -> None:
    hidden, label = planted(1000, ("last",))
    config = settings("curiosity", "boredom", pooling=["mean", "last"])
    probes = fit_probes(hidden, made_corpus(label), LAYERS, config, "m")
    assert (probes.names, probes.layers) == (("boredom",), (5,))  # nobody labelled curiosity
    probe = probes.probes["boredom"]
    assert (probe.layer, probe.pooling) == (5, "last")
    assert np.flatnonzero(probe.weight).tolist() == [6, 7, 8, 9, 10, 11]
    assert np.argmax(np.abs(probe.weight)) == 7
    assert list(probe.validation_auroc) == ["2", "5", "7"]
    assert probe.validation_auroc["5"] > 0.85 > 0.65 > probe.validation_auroc["2"]


# --- probabilities --------------------------------------------------------------------------------


def uncertain(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States and labels, about one positive in four, whose true logit is known to be linear."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 20))
    logit = 1.5 * x[:, 0] - 1.5 * x[:, 1] - 1.5
    return x, (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)


def calibration_slope(reading: np.ndarray, label: np.ndarray) -> float:
    """1 for calibrated logits, above 1 for underconfident ones."""
    return float(LogisticRegression(C=1e6).fit(reading[:, None], label).coef_[0, 0])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_underconfident_logits_come_out_calibrated(strength: float) -> None:
    """Means of three draws, on rows that nothing was fitted on: regularisation is undone."""
    before, after, shares = [], [], []
    for seed in range(3):
        (x, label), (fresh, truth) = uncertain(3000, seed), uncertain(6000, seed + 50)
        weight, bias = fit(x, label, strength)
        before.append(calibration_slope(fresh @ weight + bias, truth))
        weight, bias = fit_calibrated(x, label, np.arange(3000) // 10, strength)
        reading = fresh @ weight + bias
        after.append(calibration_slope(reading, truth))
        shares.append((1 / (1 + np.exp(-reading))).mean() - truth.mean())
    if strength == STRENGTHS[0]:
        assert np.mean(before) > 2
    assert np.mean(after) == pytest.approx(1, abs=0.07)
    assert np.mean(shares) == pytest.approx(0, abs=0.015)


def test_groups_stay_together_when_readings_are_cross_fitted() -> None:
    """Rows of one author are copies, with labels by chance: an author's own rows must not tell."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(60, 40)), 5, axis=0)
    label = np.repeat(rng.integers(2, size=60), 5)
    together, _ = fit_calibrated(x, label, np.repeat(np.arange(60), 5), 1.0)
    apart, _ = fit_calibrated(x, label, np.arange(300), 1.0)
    assert np.linalg.norm(together) < np.linalg.norm(apart) / 5


def three_kinds(n: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """One row in ten with a sign is positive; neutral rows lean to one side and lie apart.

    Along the first axis positive is +1, negative -1, neutral 0.5; along the second only neutral
    rows differ, so that a probe can read them as neutral if it is told to.
    """
    rng = np.random.default_rng(4)
    kind = rng.choice([1, 0, NEITHER], p=[0.06, 0.54, 0.4], size=n)
    at = {1: (1.0, 0.0), 0: (-1.0, 0.0), NEITHER: (0.5, 1.5)}
    x = 0.3 * rng.normal(size=(n, WIDTH))
    x[:, :2] += [at[k] for k in kind.tolist()]
    return x, kind


@pytest.mark.parametrize("strength", [0.003, 0.1])
def test_neutral_rows_read_near_even_odds_and_the_others_keep_their_signs(strength: float) -> None:
    """The rarer class too, though a row in ten is little beside the neutral ones."""
    x, kind = three_kinds()
    groups = np.arange(len(kind)) // 10
    told, bias = fit_calibrated(x, kind, groups, strength)
    signed = np.flatnonzero(kind >= 0)
    untold, before = fit_calibrated(x[signed], kind[signed], groups[signed], strength)
    own, theirs = (1 / (1 + np.exp(-(x @ w + b))) for w, b in ((told, bias), (untold, before)))
    assert own[kind == NEITHER].mean() == pytest.approx(0.5, abs=0.07)
    assert abs(theirs[kind == NEITHER].mean() - 0.5) > 0.15
    assert own[kind == 1].mean() > 0.85
    assert own[kind == 0].mean() < 0.15


# --- what may not matter --------------------------------------------------------------------------


def same(one: AffectProbes, other: AffectProbes) -> bool:
    a, b = one.probes["boredom"], other.probes["boredom"]
    return (a.layer, a.pooling, a.bias, a.validation_auroc) == (
        b.layer,
        b.pooling,
        b.bias,
        b.validation_auroc,
    ) and np.array_equal(a.weight, b.weight)


def test_unlabelled_rows_are_never_used() -> None:
    """Nobody labelled half of the rows; their states are made to say the opposite, loudly."""
    hidden, truth = planted(800, ("mean",))
    silent = np.arange(800) % 2 == 0
    corpus = made_corpus(np.where(silent, UNLABELLED, truth))
    probes = fit_probes(hidden, corpus, LAYERS, settings("boredom"), "m")
    changed = hidden.copy()
    changed[silent] *= -50
    assert same(fit_probes(changed, corpus, LAYERS, settings("boredom"), "m"), probes)
    assert probes.probes["boredom"].validation_auroc["5"] > 0.85


def test_test_authors_take_part_in_no_choice() -> None:
    """Whatever the test authors say and however they are labelled, the same probe comes out."""
    hidden, label = planted(600, ("last",))
    corpus = made_corpus(label)
    probes = fit_probes(hidden, corpus, LAYERS, settings("boredom"), "m")
    test = split_by_group(corpus.groups) == TEST
    changed = hidden.copy()
    changed[test] *= -30
    other = made_corpus(np.where(test, 1 - label, label))
    assert same(fit_probes(changed, other, LAYERS, settings("boredom"), "m"), probes)


def test_neutral_validation_rows_are_not_scored() -> None:
    """Whatever their states say, the figures of the candidates are the same."""
    hidden, label = planted(900, ("last",))
    part = np.repeat([TRAIN, VALIDATION, TEST], 300)
    label[(part == VALIDATION) & (np.arange(900) % 10 == 0)] = NEITHER
    config = settings("sentiment", pooling=["last"])
    found = select(hidden, label, part, LAYERS, config)
    hidden[(part == VALIDATION) & (label == NEITHER)] *= -30
    assert select(hidden, label, part, LAYERS, config) == found
    assert found[5, "last", STRENGTHS[1]] > 0.85


def test_selection_is_capped_but_not_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, label = planted(1000, ("last",))
    fitted: list[int] = []

    def counted(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
        fitted.append(len(y))
        return fit(x, y, strength)

    monkeypatch.setattr("homeostat.signals.probing.probes.SELECTION_ROWS", 100)
    monkeypatch.setattr("homeostat.signals.probing.probes.fit", counted)
    fit_probes(hidden, made_corpus(label), LAYERS, settings("boredom"), "m")
    # 11 candidates; five folds of the 800 rows of training and validation; all of them
    assert fitted == [100] * 11 + [640] * 5 + [800]


@pytest.mark.parametrize(("number", "name"), enumerate(("training", "validation", "test")))
@pytest.mark.parametrize("only", [0, 1])
def test_part_with_one_class_is_named(number: int, name: str, only: int) -> None:
    groups = np.array([f"g{i // 10}" for i in range(200)])
    label = np.where(split_by_group(groups) == number, only, np.arange(200) % 2)
    with pytest.raises(HomeostatError) as caught:
        fit_probes(noise(200), made_corpus(label), LAYERS, settings("boredom"), "m")
    assert str(caught.value) == (
        f"the {name} authors of the corpus have only one class of boredom; add authors with and "
        "without it, or leave it out with signals.affect.names."
    )


def test_probes_file_holds_no_weights_twice(tmp_path: Path) -> None:
    by_hand().save(tmp_path)
    about = json.loads((tmp_path / "probes.json").read_text())
    assert about == {
        "model": "model a",
        "corpus": "made up",
        "affects": {
            "sentiment": {
                "layer": 7,
                "pooling": "both",
                "regularisation": 0.1,
                "bias": 0.5,
                "validation_auroc": {"7": 0.8},
            },
            "boredom": {
                "layer": 2,
                "pooling": "mean",
                "regularisation": 0.3,
                "bias": -1.0,
                "validation_auroc": {"2": 0.7, "7": 0.6},
            },
        },
    }
