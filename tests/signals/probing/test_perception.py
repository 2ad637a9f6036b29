from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache as remember
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import affect_config, lora_config, signals_config, tiny_config

from homeostat.config.signals import SignalsConfig
from homeostat.models import cache as cache_module
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.signals.probing import perception, validation
from homeostat.signals.probing.auroc import auroc_samples
from homeostat.signals.probing.corpus import PACKAGED, Corpus, load_corpus
from homeostat.signals.probing.perception import Perception, obtain_perception
from homeostat.signals.probing.probes import AffectProbes, fit_probes
from homeostat.signals.probing.validation import ProbeReport

REPORT_KEYS = [
    "layer",
    "pooling",
    "regularisation",
    "validation_auroc",
    "auroc",
    "ci95",
    "n",
    "n_positive",
    "brier",
    "brier_base_rate",
    "reliability",
    "controls",
    "heldout_auroc",
    "heldout",
    "transfer",
    "verdict",
    "reason",
]


def rows(authors: int, words: Sequence[str] = ("great!", "dull")) -> list[dict[str, Any]]:
    """Authors who are bored in every other of four rows."""
    return [
        {"text": f"{words[n % 2]} {g} {n}", "group": f"g{g}", "boredom": n % 2}
        for g in range(authors)
        for n in range(4)
    ]


def write_jsonl(path: Path, found: Sequence[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, found)))
    return str(path)


def write_csv(path: Path, found: Sequence[dict[str, Any]]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return str(path)


@remember
def packaged(affects: tuple[str, ...], author_groups: int | None) -> Corpus:
    return load_corpus(None, affects, author_groups)


def load(path: str | None, affects: Sequence[str], author_groups: int | None = None) -> Corpus:
    """The packaged corpus is parsed once."""
    if path is None:
        return packaged(tuple(affects), author_groups)
    return load_corpus(path, affects, author_groups)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not looked at here, so they may be coarse."""
    monkeypatch.setattr(perception, "load_corpus", load)
    monkeypatch.setattr(validation, "DIRECTIONS", 2)
    monkeypatch.setattr(validation, "SHUFFLES", 1)
    monkeypatch.setattr(validation, "auroc_samples", partial(auroc_samples, samples=20))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., SignalsConfig]:
    """A corpus of twenty authors in a file, and little else to try."""
    path = write_jsonl(tmp_path / "own.jsonl", rows(20))

    def make(cache: bool = True, **changes: Any) -> SignalsConfig:
        few = {"layers": [0.5], "pooling": ["mean"], "regularisation": [0.1]}
        affect = affect_config(**{"names": ["boredom"], "corpus": path, **few} | changes)
        return signals_config(affect=affect, author_groups=10, cache=cache)

    return make


@pytest.fixture
def fits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The corpus of every fit that really happened; nothing is validated."""
    assert not cache.exists()
    done: list[str] = []

    def counted(states: np.ndarray, corpus: Corpus, *rest: Any) -> AffectProbes:
        done.append(corpus.source)
        return fit_probes(states, corpus, *rest)

    monkeypatch.setattr(perception, "fit_probes", counted)
    monkeypatch.setattr(perception, "validate_probes", lambda *_: {})
    return done


def plain(found: Perception) -> str:
    return json.dumps({name: asdict(report) for name, report in found.reports.items()})


def test_second_call_reads_and_fits_nothing_whatever_the_adapter_has_learnt(
    make_policy: Callable[..., Policy],
    stir: Callable[[Policy], None],
    settings: Callable[..., SignalsConfig],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = obtain_perception(make_policy(), settings())
    assert list(cache.glob("probes/*/report.json"))

    def fail(*_: Any) -> Any:
        raise AssertionError("not taken from the cache")

    for name in ("fit_probes", "utterance_states", "validate_probes"):
        monkeypatch.setattr(perception, name, fail)
    policy = make_policy(seed=3)
    stir(policy)
    second = obtain_perception(policy, settings())
    assert second.probes.names == ("boredom",)
    assert second.probes.layers == first.probes.layers == (2,)
    own, theirs = (found.probes.probes["boredom"] for found in (first, second))
    assert np.array_equal(own.weight, theirs.weight)
    assert own.bias == theirs.bias
    assert plain(second) == plain(first)
    assert second.reports["boredom"].ci95 == first.reports["boredom"].ci95
    assert second.corpus == first.corpus
    assert second.notices == first.notices


def test_report_does_not_depend_on_what_the_adapter_has_learnt(
    make_policy: Callable[..., Policy],
    stir: Callable[[Policy], None],
    settings: Callable[..., SignalsConfig],
    cache: Path,
) -> None:
    """Nothing is kept without the cache, and the same comes out again."""
    policy = make_policy()
    first = obtain_perception(policy, settings(cache=False))
    stir(policy)
    assert plain(obtain_perception(policy, settings(cache=False))) == plain(first)
    assert not cache.exists() or not any(cache.rglob("*.json"))
    assert not any(cache.rglob("*.safetensors"))


def test_other_config_is_fitted_again(
    make_policy: Callable[..., Policy], settings: Callable[..., SignalsConfig], fits: list[str]
) -> None:
    policy = make_policy()
    changes: list[dict[str, Any]] = [
        {},
        {"layers": [0.25]},
        {"pooling": ["last"]},
        {"regularisation": [0.2]},
        {"names": ["boredom", "curiosity"]},
    ]
    for n, change in enumerate(changes, start=1):
        obtain_perception(policy, settings(**change))
        assert len(fits) == n, change
    for change in changes:
        obtain_perception(policy, settings(**change))
    assert len(fits) == len(changes)


@pytest.mark.parametrize("kind", ["report.json", "*.safetensors", "*.json"])
def test_damaged_probes_are_fitted_and_kept_again(
    kind: str,
    make_policy: Callable[..., Policy],
    settings: Callable[..., SignalsConfig],
    fits: list[str],
    cache: Path,
) -> None:
    obtain_perception(make_policy(), settings())
    damaged = list(cache.glob(f"probes/*/{kind}"))
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:1])
    obtain_perception(make_policy(), settings())
    obtain_perception(make_policy(), settings())
    assert len(fits) == 2


def test_other_content_code_or_model_is_fitted_again(
    make_policy: Callable[..., Policy],
    settings: Callable[..., SignalsConfig],
    fits: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy()
    obtain_perception(policy, settings())
    write_jsonl(tmp_path / "own.jsonl", rows(20, ("fine", "dull")))
    obtain_perception(policy, settings())
    assert len(fits) == 2
    path = write_jsonl(tmp_path / "away.jsonl", rows(12))
    obtain_perception(policy, settings(heldout=path))
    write_jsonl(tmp_path / "away.jsonl", rows(13))
    obtain_perception(policy, settings(heldout=path))
    assert len(fits) == 4
    other = load_tiny(tiny_config(name="tiny", init_seed=1), torch.device("cpu"), torch.float32)
    obtain_perception(Policy(other, lora_config(rank=2), 0), settings())
    assert len(fits) == 5
    monkeypatch.setattr(perception, "code_digest", lambda: "other code")
    obtain_perception(policy, settings())
    assert len(fits) == 6
    monkeypatch.setattr(perception, "code_digest", cache_module.code_digest)
    obtain_perception(policy, settings())
    assert len(fits) == 6


def test_saved_report_has_every_figure(
    make_policy: Callable[..., Policy],
    settings: Callable[..., SignalsConfig],
    cache: Path,
    tmp_path: Path,
) -> None:
    found = obtain_perception(make_policy(), settings())
    found.save(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert {name: list(figures) for name, figures in report.items()} == {"boredom": REPORT_KEYS}
    (kept,) = cache.glob("probes/*/report.json")
    assert json.loads(kept.read_text(encoding="utf-8")) == report
    figures = report["boredom"]
    assert figures["n"] == 16  # four of twenty authors
    assert figures["heldout_auroc"] is figures["heldout"] is None
    own = str(tmp_path / "own.jsonl")
    assert set(figures["transfer"]) == {
        f"{a} → {b}" for a in (own, PACKAGED) for b in (own, PACKAGED)
    }


@pytest.mark.parametrize("write", [write_jsonl, write_csv])
@pytest.mark.usefixtures("cache")
def test_heldout_file_gives_a_figure(
    make_policy: Callable[..., Policy],
    settings: Callable[..., SignalsConfig],
    write: Callable[..., str],
    tmp_path: Path,
) -> None:
    path = write(tmp_path / f"away.{'csv' if write is write_csv else 'jsonl'}", rows(12))
    report = obtain_perception(make_policy(), settings(heldout=path)).reports["boredom"]
    assert report.heldout_auroc is not None
    assert 0 <= report.heldout_auroc <= 1
    assert report.heldout is not None
    assert (report.heldout["n"], report.heldout["n_positive"]) == (48, 24)
    own = str(tmp_path / "own.jsonl")
    assert {f"{own} → {path}", f"{own} → {PACKAGED}"} <= set(report.transfer)
    assert len(report.transfer) == 9


@pytest.mark.usefixtures("cache")
def test_heldout_file_is_the_other_corpus_of_the_packaged_one(
    make_policy: Callable[..., Policy], settings: Callable[..., SignalsConfig], tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "away.jsonl", rows(12))
    found = obtain_perception(make_policy(), settings(corpus=None, heldout=path))
    assert found.corpus.source == PACKAGED
    authors = {u.group for u in found.corpus.utterances if not u.levels}
    assert len(authors) == 10
    assert "no corpus from another source" not in found.reports["boredom"].reason
    assert len(found.reports["boredom"].transfer) == 4


@pytest.mark.usefixtures("cache")
def test_affect_that_nobody_labelled_is_left_out_with_a_notice(
    make_policy: Callable[..., Policy], settings: Callable[..., SignalsConfig], tmp_path: Path
) -> None:
    away = [row | {"boredom": "", "curiosity": row["boredom"]} for row in rows(12)]
    path = write_jsonl(tmp_path / "away.jsonl", away)
    config = settings(names=["curiosity", "boredom"], heldout=path)
    for found in (obtain_perception(make_policy(), config) for _ in range(2)):
        assert found.probes.names == tuple(found.reports) == ("boredom",)
        assert found.reports["boredom"].heldout_auroc is None
        assert list(found.notices) == [
            f"{tmp_path / 'own.jsonl'} has no curiosity with both classes; no probe of curiosity "
            "is fitted or tested on it.",
            f"{path} has no boredom with both classes; no probe of boredom is fitted or tested on "
            "it.",
        ]


@pytest.mark.parametrize(
    ("require", "expected"),
    [("trusted", ("curiosity",)), ("weak", ("boredom", "curiosity"))],
)
def test_allowed(require: str, expected: tuple[str, ...]) -> None:
    one = ProbeReport(
        layer=1,
        pooling="mean",
        regularisation=0.1,
        validation_auroc={},
        auroc=0.5,
        ci95=None,
        n=1,
        n_positive=0,
        brier=0.2,
        brier_base_rate=0.2,
        reliability=[],
        controls={},
        heldout_auroc=None,
        heldout=None,
    )
    verdicts = {"boredom": "weak", "curiosity": "trusted", "confusion": "unusable"}
    reports = {name: replace(one, verdict=verdict) for name, verdict in verdicts.items()}
    found = Perception(AffectProbes({}, "m", "c"), reports, Corpus((), "d", "c"))
    assert found.allowed(require) == expected
    assert found.allowed("any") == tuple(verdicts)
    assert one.verdict == "unusable"  # until a verdict is reached


def test_run_without_affects_has_no_perception(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(ValueError, match=r"signals\.affect is not part"):
        obtain_perception(make_policy(), signals_config())
