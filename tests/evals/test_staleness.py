from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from configs import affect_config

from homeostat.config.signals import AffectConfig
from homeostat.evals import staleness
from homeostat.evals.staleness import measure_staleness, stale
from homeostat.models.adapters import Policy
from homeostat.signals.probing.corpus import NEITHER, UNLABELLED, Corpus, Utterance
from homeostat.signals.probing.perception import Perception
from homeostat.signals.probing.probes import TEST, AffectProbes, Probe, split_by_group
from homeostat.signals.probing.states import read_states
from homeostat.types import Conversation, Turn

NEVER = 9.0  # no AUROC drops and no reading moves by that much


def made_corpus(labels: Sequence[int]) -> Corpus:
    """Two messages per author."""
    utterances = tuple(
        Utterance(
            Conversation((Turn("user", f"message {i * 37 % 101}"),)),
            f"g{i // 2}",
            {} if label == UNLABELLED else {"boredom": label},
        )
        for i, label in enumerate(labels)
    )
    return Corpus(utterances, "digest", "made up")


def made_perception(labels: Sequence[int], names: Sequence[str] = ("boredom",)) -> Perception:
    probes = {}
    for seed, name in enumerate(names):
        weight = np.random.default_rng(seed).normal(size=64) / 20
        probes[name] = Probe(1 + seed, "both", 0.1, weight, 0.1, {})
    return Perception(AffectProbes(probes, "m", "made up"), {}, made_corpus(labels))


def readings(policy: Policy, perception: Perception, rows: Sequence[int]) -> np.ndarray:
    """Of the first probe, policy as it is."""
    probe = perception.probes.probes["boredom"]
    messages = [perception.corpus.utterances[i] for i in rows]
    states = read_states(policy, messages, [probe.layer])[:, 0].astype(float)
    found: np.ndarray = 1 / (1 + np.exp(-(states @ probe.weight + probe.bias)))
    return found


def config(drop: float = NEVER, distance: float = NEVER) -> AffectConfig:
    return affect_config(stale_auroc_drop=drop, stale_distance=distance)


@pytest.fixture
def trained(make_policy: Callable[..., Policy], stir: Callable[[Policy], None]) -> Policy:
    policy = make_policy()
    stir(policy)
    return policy


@pytest.fixture
def told(trained: Policy) -> Perception:
    """A probe that is perfect with the adapter off: the labels are what it reads there."""
    blank = made_perception([0] * 80)
    with trained.reference():
        read = readings(trained, blank, range(80))
    return made_perception((read > np.median(read)).astype(int).tolist())


def rows_of_test_authors(corpus: Corpus) -> list[int]:
    return np.flatnonzero(split_by_group(corpus.groups) == TEST).tolist()


def test_fresh_adapter_moves_nothing(make_policy: Callable[..., Policy]) -> None:
    found = measure_staleness(make_policy(), made_perception([0, 1] * 40), config(1e-9, 1e-9))
    figures = found["boredom"]
    assert figures["distance"] == 0.0
    assert figures["auroc_on"] == figures["auroc_off"] is not None
    assert figures["n"] == 16  # eight of forty authors
    assert figures["stale"] is False
    assert stale(found) == []


def test_trained_adapter_moves_the_readings_of_the_test_authors(
    trained: Policy, told: Perception
) -> None:
    figures = measure_staleness(trained, told, config())["boredom"]
    rows = rows_of_test_authors(told.corpus)
    on = readings(trained, told, rows)
    with trained.reference():
        off = readings(trained, told, rows)
    assert figures["distance"] == pytest.approx(np.abs(on - off).mean(), rel=1e-4)
    assert figures["distance"] > 0.01
    assert figures["auroc_off"] == 1.0
    assert figures["auroc_on"] < 1.0
    assert figures["stale"] is False
    assert trained.adapter_on


@pytest.mark.parametrize("share", [0.5, 0.999, 1.001])
def test_either_threshold_alone_gives_the_alarm(
    trained: Policy, told: Perception, share: float
) -> None:
    """Thresholds at a share of what was found; below 1 it was passed."""
    found = measure_staleness(trained, told, config())["boredom"]
    drop, distance = found["auroc_off"] - found["auroc_on"], found["distance"]
    for thresholds in ((drop * share, NEVER), (NEVER, distance * share)):
        again = measure_staleness(trained, told, config(*thresholds))
        assert again["boredom"]["stale"] is (share < 1)
        assert stale(again) == (["boredom"] if share < 1 else [])


def test_drop_of_exactly_the_threshold_is_stale(trained: Policy, told: Perception) -> None:
    found = measure_staleness(trained, told, config())["boredom"]
    drop = found["auroc_off"] - found["auroc_on"]
    assert measure_staleness(trained, told, config(drop))["boredom"]["stale"]


def test_probe_that_got_better_is_not_stale_for_its_auroc(
    trained: Policy, told: Perception
) -> None:
    turned = [1 - u.labels["boredom"] for u in told.corpus.utterances]
    figures = measure_staleness(trained, made_perception(turned), config(1e-9))["boredom"]
    assert figures["auroc_off"] == 0.0 < figures["auroc_on"]
    assert figures["stale"] is False


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_class_has_no_auroc_but_a_distance(trained: Policy, missing: int) -> None:
    perception = made_perception([1 - missing] * 80)
    figures = measure_staleness(trained, perception, config(1e-9))["boredom"]
    assert figures["auroc_off"] is figures["auroc_on"] is None
    assert figures["distance"] > 0.01
    assert figures["stale"] is False
    assert stale(measure_staleness(trained, perception, config(1e-9, 1e-3))) == ["boredom"]


def test_rows_without_a_class_count_for_the_distance_only(
    trained: Policy, told: Perception
) -> None:
    rows, labels = (
        rows_of_test_authors(told.corpus),
        [u.labels["boredom"] for u in told.corpus.utterances],
    )
    whole = measure_staleness(trained, told, config())["boredom"]
    labels[rows[0]], labels[rows[1]] = NEITHER, UNLABELLED
    figures = measure_staleness(trained, made_perception(labels), config())["boredom"]
    assert (whole["n"], figures["n"]) == (len(rows), len(rows) - 2)
    assert figures["distance"] == whole["distance"]
    assert figures["auroc_off"] == 1.0


def test_other_authors_are_not_read(trained: Policy, told: Perception) -> None:
    changed = [1 - u.labels["boredom"] for u in told.corpus.utterances]
    for i in rows_of_test_authors(told.corpus):
        changed[i] = told.corpus.utterances[i].labels["boredom"]
    assert measure_staleness(trained, made_perception(changed), config()) == measure_staleness(
        trained, told, config()
    )


@pytest.mark.parametrize(("most", "read"), [(5, 5), (16, 16), (1000, 16)])
def test_at_most_so_many_messages_are_read(
    trained: Policy, told: Perception, most: int, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(policy: Policy, messages: Sequence[Utterance], *rest: Any) -> np.ndarray:
        seen.append((policy.adapter_on, [m.text for m in messages]))
        return read_states(policy, messages, *rest)

    monkeypatch.setattr(staleness, "ROWS", most)
    monkeypatch.setattr(staleness, "read_states", record)
    measure_staleness(trained, told, config())
    (off, before), (on, after) = seen
    assert (off, on) == (False, True)
    assert before == after
    assert len(set(before)) == read
    texts = [told.corpus.texts[i] for i in rows_of_test_authors(told.corpus)]
    assert [before[0], before[-1]] == [texts[0], texts[-1]]


def test_every_probe_has_figures_of_its_own(trained: Policy) -> None:
    perception = made_perception([0, 1] * 40, names=("boredom", "curiosity"))
    found = measure_staleness(trained, perception, config(1e-9, 1e-3))
    alone = measure_staleness(trained, made_perception([0, 1] * 40), config(1e-9, 1e-3))
    assert list(found) == ["boredom", "curiosity"]
    assert found["boredom"] == pytest.approx(alone["boredom"])
    assert found["curiosity"]["auroc_on"] is None  # nobody labelled it
    assert found["curiosity"]["distance"] != found["boredom"]["distance"]
    assert stale(found) == ["boredom", "curiosity"]
