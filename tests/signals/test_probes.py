from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homeostat.config import AffectConfig, LoraConfig, TinyModelConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.signals import probes as probes_module
from homeostat.signals.corpus import Corpus, Utterance
from homeostat.signals.probes import (
    AffectProbes,
    ProbeScore,
    auroc_interval,
    fit_probes,
    obtain_probes,
    split_by_group,
    utterance_states,
)
from homeostat.types import Conversation, Turn

LAYERS, WIDTH = (2, 5, 7), 8
DIRECTION = np.array([3.0, -1.0, 2.0, 0.0, 0.0, 1.0, 0.0, -2.0])


def made_corpus(labels: list[dict[str, int]], per_group: int = 10) -> Corpus:
    utterances = tuple(
        Utterance(Conversation((Turn("user", f"text {i}"),)), f"g{i // per_group}", label)
        for i, label in enumerate(labels)
    )
    return Corpus(utterances, "digest", "made up")


def settings(*names: str) -> AffectConfig:
    return AffectConfig(names=list(names), regularisation=[0.01, 0.1])


def noise(n: int) -> np.ndarray:
    """Hidden states that know nothing."""
    return np.random.default_rng(0).normal(size=(n, len(LAYERS), WIDTH)).astype(np.float32)


def slow_auroc(label: list[int], reading: list[float]) -> float:
    """Share of pairs in which the row with the affect reads higher."""
    pairs = [
        (reading[i] > reading[j]) + 0.5 * (reading[i] == reading[j])
        for i in range(len(label))
        for j in range(len(label))
        if label[i] == 1 and label[j] == 0
    ]
    return sum(pairs) / len(pairs)


@contextmanager
def no_bootstrap() -> Iterator[None]:
    """Spare the time of the bootstrap where its interval is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes_module, "auroc_interval", lambda *_: (0.0, 1.0))
        yield


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, Corpus, AffectProbes]:
    """At the middle layer one direction carries the label, at the others nothing does."""
    label = np.random.default_rng(1).integers(2, size=600)
    hidden = noise(600)
    hidden[:, 1] += (label[:, None] * DIRECTION).astype(np.float32)
    corpus = made_corpus([{"boredom": int(y)} for y in label])
    return hidden, corpus, fit_probes(hidden, corpus, LAYERS, settings("boredom"), "model a")


def test_layer_that_carries_the_label_is_chosen(
    planted: tuple[np.ndarray, Corpus, AffectProbes],
) -> None:
    score = planted[2].scores["boredom"]
    assert score.layer == 5
    assert score.auroc > 0.95
    assert list(score.validation_auroc) == ["2", "5", "7"]
    assert score.validation_auroc["5"] > 0.95
    assert max(score.validation_auroc[layer] for layer in ("2", "7")) < 0.7


def test_reading_points_along_the_planted_direction(
    planted: tuple[np.ndarray, Corpus, AffectProbes],
) -> None:
    weight = planted[2].weights["boredom"]
    cosine = weight @ DIRECTION / np.linalg.norm(weight) / np.linalg.norm(DIRECTION)
    assert cosine > 0.9


def test_score_is_the_auroc_of_the_test_authors(
    planted: tuple[np.ndarray, Corpus, AffectProbes],
) -> None:
    hidden, corpus, probes = planted
    test = np.flatnonzero(split_by_group(corpus.groups) == 2)
    label = [corpus.utterances[i].labels["boredom"] for i in test]
    score = probes.scores["boredom"]
    assert score.auroc == pytest.approx(slow_auroc(label, probes.read(hidden[test])[:, 0].tolist()))
    assert score.n == len(test) == 120
    assert score.n_positive == sum(label)
    assert score.ci95[0] <= score.auroc <= score.ci95[1]


def test_shuffled_labels_are_read_by_chance() -> None:
    """400 test rows: the standard error of a chance AUROC is 0.03, the bound is 4 of them."""
    label = np.random.default_rng(2).integers(2, size=2000)
    corpus = made_corpus([{"boredom": int(y)} for y in label])
    with no_bootstrap():
        probes = fit_probes(noise(2000), corpus, LAYERS, settings("boredom"), "m")
    score = probes.scores["boredom"]
    assert score.n == 400
    assert abs(score.auroc - 0.5) < 0.12


def test_test_authors_take_part_in_no_choice(
    planted: tuple[np.ndarray, Corpus, AffectProbes],
) -> None:
    """Whatever the test authors say, the same probe comes out."""
    hidden, corpus, probes = planted
    changed = hidden.copy()
    changed[split_by_group(corpus.groups) == 2] *= -3
    with no_bootstrap():
        other = fit_probes(changed, corpus, LAYERS, settings("boredom"), "model a")
    assert np.array_equal(other.weights["boredom"], probes.weights["boredom"])
    assert other.biases == probes.biases
    assert other.scores["boredom"].auroc < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_never_straddle_parts(seed: int) -> None:
    groups = np.random.default_rng(3).permutation([f"g{i % 25}" for i in range(400)])
    part = split_by_group(groups, seed)
    parts = {name: set(part[groups == name].tolist()) for name in np.unique(groups)}
    assert all(len(found) == 1 for found in parts.values())
    sizes = [sum(found == {number} for found in parts.values()) for number in (0, 1, 2)]
    assert sizes == [15, 5, 5]


def test_split_depends_on_the_seed_alone() -> None:
    groups = np.array([f"g{i % 25}" for i in range(100)])
    assert np.array_equal(split_by_group(groups), split_by_group(groups))
    assert not np.array_equal(split_by_group(groups), split_by_group(groups, seed=1))


@pytest.fixture(scope="module")
def anchored() -> tuple[np.ndarray, np.ndarray, AffectProbes, AffectProbes]:
    """Sentiment with neutral rows, nine negative rows in ten: states, labels, probes with, without.

    Along the first axis positive is +1, negative -1; neutral rows lie at 0.5 there and apart from
    both on the second axis, so that a probe can read them as neutral if it is told to.
    """
    rng = np.random.default_rng(4)
    kind = rng.choice([1, 0, -1], p=[0.06, 0.54, 0.4], size=900)
    hidden = 0.3 * noise(900)
    at = {1: (1.0, 0.0), 0: (-1.0, 0.0), -1: (0.5, 1.5)}
    hidden[:, 1, :2] += np.array([at[k] for k in kind.tolist()], dtype=np.float32)
    corpus = made_corpus([{} if k < 0 else {"sentiment": int(k)} for k in kind], per_group=30)
    told = [i for i, k in enumerate(kind) if k >= 0]
    without = Corpus(tuple(corpus.utterances[i] for i in told), "digest", "made up")
    with no_bootstrap():
        probes = fit_probes(hidden, corpus, LAYERS, settings("sentiment"), "m")
        untold = fit_probes(hidden[told], without, LAYERS, settings("sentiment"), "m")
    return hidden, kind, probes, untold


def test_neutral_rows_pull_their_reading_towards_0(
    anchored: tuple[np.ndarray, np.ndarray, AffectProbes, AffectProbes],
) -> None:
    hidden, kind, probes, untold = anchored
    assert probes.scores["sentiment"].layer == untold.scores["sentiment"].layer == 5
    reading, before = (p.read(hidden[kind < 0])[:, 0] for p in (probes, untold))
    assert abs(before.mean()) > 0.3
    assert abs(reading.mean()) < 0.1
    assert np.abs(reading).mean() < np.abs(before).mean() / 2


def test_neutral_rows_leave_the_signs_of_the_others(
    anchored: tuple[np.ndarray, np.ndarray, AffectProbes, AffectProbes],
) -> None:
    hidden, kind, probes, _ = anchored
    assert probes.read(hidden[kind == 1])[:, 0].mean() > 0.3
    assert probes.read(hidden[kind == 0])[:, 0].mean() < -0.3
    assert probes.scores["sentiment"].auroc > 0.95
    assert probes.scores["sentiment"].n < 180  # neutral rows are not scored


def score_at(layer: int) -> ProbeScore:
    return ProbeScore(layer, 0.1, 0.75, (0.5, 1.0), 3, 9, {str(layer): 0.8})


def by_hand() -> AffectProbes:
    """Two probes at different layers whose readings can be written down."""
    scores = {"sentiment": score_at(7), "boredom": score_at(2)}
    weights = {"sentiment": np.array([1.0, -2.0]), "boredom": np.array([0.5, 0.0])}
    biases = {"sentiment": 0.5, "boredom": -1.0}
    return AffectProbes(scores, weights, biases, LAYERS, "model a", "made up")


def test_readings_by_hand() -> None:
    """Logits 2 - 0.5 + 0.5 and 2 - 1; for the second turn the biases alone."""
    hidden = np.full((2, 3, 2), 99.0, dtype=np.float32)
    hidden[:, 2], hidden[:, 0] = [[2.0, 0.25], [0.0, 0.0]], [[4.0, 9.0], [0.0, 0.0]]
    probes = by_hand()
    assert probes.names == ("sentiment", "boredom")
    sentiment, boredom = probes.read(hidden).T
    assert sentiment.tolist() == pytest.approx(
        [2 / (1 + math.exp(-2)) - 1, 2 / (1 + math.exp(-0.5)) - 1]
    )
    assert boredom.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


def test_saved_probes_read_the_same(
    planted: tuple[np.ndarray, Corpus, AffectProbes], tmp_path: Path
) -> None:
    hidden, _, probes = planted
    probes.save(tmp_path / "deep" / "probes")
    loaded = AffectProbes.load(tmp_path / "deep" / "probes", "model a")
    assert np.array_equal(loaded.read(hidden), probes.read(hidden))
    assert loaded.scores == probes.scores
    assert (loaded.layers, loaded.corpus) == (LAYERS, "made up")


def test_order_of_the_affects_survives_saving(tmp_path: Path) -> None:
    hidden = np.random.default_rng(5).normal(size=(4, 3, 2)).astype(np.float32)
    by_hand().save(tmp_path)
    loaded = AffectProbes.load(tmp_path, "model a")
    assert loaded.names == ("sentiment", "boredom")
    assert np.array_equal(loaded.read(hidden), by_hand().read(hidden))


def test_probes_of_another_model_are_refused(tmp_path: Path) -> None:
    by_hand().save(tmp_path)
    with pytest.raises(HomeostatError) as caught:
        AffectProbes.load(tmp_path, "model b")
    assert f"the probes in {tmp_path} were fitted on another model" in str(caught.value)


def test_interval_resamples_whole_groups() -> None:
    """Within a group all rows agree, so a good group and a bad one leave the figure open."""
    label = np.array([0, 1] * 20)
    groups = np.repeat(["good", "bad"], 20)
    score = np.where(groups == "bad", -label, label).astype(float)
    assert auroc_interval(label, score, groups, samples=60) == (0.0, 1.0)
    low, high = auroc_interval(label, score, np.arange(40).astype(str), samples=60)
    assert 0.2 < low < slow_auroc(label.tolist(), score.tolist()) < high < 0.8


def test_interval_of_a_perfect_score_is_1() -> None:
    label = np.array([0, 1] * 10)
    assert auroc_interval(label, label.astype(float), np.arange(20), samples=20) == (1.0, 1.0)


@pytest.mark.parametrize(("number", "name"), enumerate(("training", "validation", "test")))
def test_part_with_one_class_is_named(number: int, name: str) -> None:
    groups = np.array([f"g{i // 10}" for i in range(200)])
    label = np.where(split_by_group(groups) == number, 1, np.arange(200) % 2)
    corpus = made_corpus([{"boredom": int(y)} for y in label])
    with pytest.raises(HomeostatError, match=f"the {name} authors .* only one class of boredom"):
        fit_probes(noise(200), corpus, LAYERS, settings("boredom"), "m")


def write_corpus(path: Path, word: str = "dull") -> str:
    """Twenty authors who are bored in every other row."""
    lines = [
        {"text": f"{word} {g}" if n else f"great {g}!", "group": f"g{g}", "boredom": n}
        for g in range(20)
        for n in (0, 1)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def fits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The corpus of every fit that really happened."""
    assert not cache.exists()
    done: list[str] = []

    def counted(*arguments: Any) -> AffectProbes:
        done.append(arguments[1].source)
        with no_bootstrap():
            return fit_probes(*arguments)

    monkeypatch.setattr(probes_module, "fit_probes", counted)
    return done


def obtainable(path: str, **changes: Any) -> AffectConfig:
    return AffectConfig(
        **{"names": ["boredom"], "corpus": path, "layers": [0.5], "regularisation": [0.1]} | changes
    )


def test_second_call_takes_the_probes_from_the_cache(
    make_policy: Callable[..., Policy],
    stir: Callable[[Policy], None],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = obtainable(write_corpus(tmp_path / "c.jsonl"))
    with no_bootstrap():
        first = obtain_probes(make_policy(), config)
    assert list(cache.glob("probes/*/probes.json"))

    def fail(*_arguments: Any) -> AffectProbes:
        raise AssertionError("fitted again")

    monkeypatch.setattr(probes_module, "fit_probes", fail)
    policy = make_policy(seed=3)
    stir(policy)
    second = obtain_probes(policy, config)
    assert first.layers == second.layers == (2,)
    assert np.array_equal(first.weights["boredom"], second.weights["boredom"])
    assert first.biases == second.biases


def test_other_recipe_is_fitted_anew(
    make_policy: Callable[..., Policy], fits: list[str], tmp_path: Path
) -> None:
    path = write_corpus(tmp_path / "c.jsonl")
    recipes: list[tuple[AffectConfig, int | None]] = [
        (obtainable(path), None),
        (obtainable(path), 15),
        (obtainable(path, layers=[0.25]), None),
        (obtainable(path, regularisation=[1.0]), None),
        (obtainable(write_corpus(tmp_path / "d.jsonl", "tiresome")), None),
    ]
    policy = make_policy()
    for _ in range(2):
        for config, author_groups in recipes:
            obtain_probes(policy, config, author_groups)
    assert len(fits) == len(recipes)


def test_other_model_is_fitted_anew(
    make_policy: Callable[..., Policy], fits: list[str], tmp_path: Path
) -> None:
    config = obtainable(write_corpus(tmp_path / "c.jsonl"))
    base = load_tiny(
        TinyModelConfig(name="tiny_random", init_seed=1), torch.device("cpu"), torch.float32
    )
    first = obtain_probes(make_policy(), config)
    other = obtain_probes(Policy(base, LoraConfig(), 0), config)
    assert len(fits) == 2
    assert first.fingerprint != other.fingerprint
    assert not np.array_equal(first.weights["boredom"], other.weights["boredom"])


def test_without_the_cache_nothing_is_kept(
    make_policy: Callable[..., Policy], fits: list[str], cache: Path, tmp_path: Path
) -> None:
    config = obtainable(write_corpus(tmp_path / "c.jsonl"), cache=False)
    for _ in range(2):
        obtain_probes(make_policy(), config)
    assert len(fits) == 2
    assert list(cache.glob("probes/*/*")) == []


def test_utterance_states_are_means_over_the_last_turn_without_the_adapter(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    corpus = made_corpus([{}, {}])
    before = (Turn("user", "why?"), Turn("assistant", "because"))
    answer = Utterance(Conversation((*before, Turn("user", "I see, then"))), "g", {})
    corpus = Corpus((*corpus.utterances, answer), "digest", "made up")
    policy, told = make_policy(), []
    base = load_tiny(TinyModelConfig(name="tiny_random"), torch.device("cpu"), torch.float32)
    stir(policy)

    def progress(done: int, total: int, tokens: int = 0) -> None:
        told.append((done, total, tokens))

    found = utterance_states(policy, corpus, (0, 2), progress)
    lengths = 0
    for u, utterance in enumerate(corpus.utterances):
        stream = policy.encode(utterance.conversation)
        lengths += len(stream.ids)
        last = len(utterance.conversation.turns) - 1
        with torch.no_grad():
            states = base.model(torch.tensor([stream.ids]), output_hidden_states=True).hidden_states
        own = [t for t, turn in enumerate(stream.turn) if turn == last]
        for at, layer in enumerate((0, 2)):
            expected = np.mean([states[layer + 1][0, t].numpy() for t in own], axis=0)
            np.testing.assert_allclose(found[u, at], expected, atol=1e-5)
    assert told == [(3, 3, lengths)]
