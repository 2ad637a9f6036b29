"""The filter on completions that were labelled by reading them; see tests/data/README.md."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from configs import filter_config

ROOT = Path(__file__).resolve().parents[2]
LABELS = ROOT / "tests" / "data" / "steered_labels.jsonl"
LONG = ROOT / "tests" / "data" / "long_labels.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def measure_filter(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import measure_filter

    return measure_filter


def test_there_are_enough_of_every_kind(rows: list[dict]) -> None:  # type: ignore[type-arg]
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == {"coherent", "word_salad", "looping", "narrating", "refusing"}
    assert len(rows) == len({row["id"] for row in rows}) == 480
    assert min(counts.values()) >= 15
    ratios = [
        float(np.exp(np.mean(row["nll"])) / row["base_perplexity"])
        for row in rows
        if row["label"] == "looping"
    ]
    assert sum(ratio < 3 for ratio in ratios) >= 15, "loops that the base finds likely"
    assert all(len(row["nll"]) == len(row["ids"]) > 0 for row in rows)


def test_the_defaults_keep_what_readers_call_coherent(measure_filter) -> None:  # type: ignore[no-untyped-def]
    found = measure_filter.measure(LABELS, filter_config())["parts"]
    for question in ("kept", "coherent"):
        own = found["held_out"][question]
        assert own["precision"]["share"] > 0.8
        assert own["recall"]["share"] > 0.85
    labels = found["all"]["labels"]
    assert labels["looping"]["fell"] / labels["looping"]["n"] > 0.9


def test_long_completions_have_two_readers() -> None:
    rows = [json.loads(line) for line in LONG.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 168
    assert sum(128 <= len(row["ids"]) <= 256 for row in rows) >= 150
    labels = [(row["label"], row["second"]) for row in rows]
    assert sum(first == second for first, second in labels) == 138
    assert sum("diffuse" in both for both in labels) >= 15


def test_the_gate_against_circles_catches_some_and_costs_little(measure_filter) -> None:  # type: ignore[no-untyped-def]
    limits = filter_config()
    before, after = (
        measure_filter.measure(LONG, one)["parts"]
        for one in (replace(limits, min_diversity=None), limits)
    )
    for half in ("tuned", "held_out"):
        old, new = (found[half]["coherent"] for found in (before, after))
        assert new["precision"]["share"] > old["precision"]["share"] + 0.05
        assert new["recall"]["share"] > old["recall"]["share"] - 0.05
    circles = [found["held_out"]["labels"]["diffuse"] for found in (before, after)]
    assert circles[0]["fell"] < circles[1]["fell"]
    assert after["all"]["coherent"]["disputed"] == 21


def test_what_is_meant_and_what_is_let_through_by_hand(measure_filter) -> None:  # type: ignore[no-untyped-def]
    judged = [
        measure_filter.Judged(label, "tuned", 0.7, failed)
        for label, failed in (
            ("coherent", ()),
            ("coherent", ("perplexity",)),
            ("refusing", ("refusal",)),
            ("narrating", ()),
            ("looping", ("repetition",)),
        )
    ]
    kept = measure_filter.answer(judged, "kept")
    assert (kept["precision"]["hits"], kept["precision"]["of"]) == (1, 2)
    assert (kept["recall"]["hits"], kept["recall"]["of"]) == (1, 2)
    coherent = measure_filter.answer(judged, "coherent")
    assert (coherent["precision"]["hits"], coherent["precision"]["of"]) == (3, 3)
    assert (coherent["recall"]["hits"], coherent["recall"]["of"]) == (3, 4)
    assert measure_filter.share(0, 0)["share"] is None
