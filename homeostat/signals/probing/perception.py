"""Probes with their report: from the cache where model, corpora, config and code are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homeostat.config.signals import SignalsConfig
from homeostat.files import cache_root, replace_folder, write_text
from homeostat.models.adapters import Policy
from homeostat.models.cache import code_digest, identity, keep, read_kept
from homeostat.models.hooks import layers_at
from homeostat.signals.probing.corpus import Corpus, load_corpus
from homeostat.signals.probing.probes import AffectProbes, fit_probes
from homeostat.signals.probing.states import utterance_states
from homeostat.signals.probing.validation import (
    TRUSTED,
    UNUSABLE,
    WEAK,
    ProbeReport,
    Sample,
    validate_probes,
)
from homeostat.types import Progress, silent

ALLOWED = {
    "trusted": (TRUSTED,),
    "weak": (TRUSTED, WEAK),
    "any": (TRUSTED, WEAK, UNUSABLE),
}


@dataclass(frozen=True)
class Perception:
    """Probes, what they are worth, and which of them the reward may use.

    Attributes:
        probes: Frozen.
        reports: Affect to its report.
        corpus: What the probes were fitted on.
        notices: What was left out, in sentences.
    """

    probes: AffectProbes
    reports: Mapping[str, ProbeReport]
    corpus: Corpus
    notices: Sequence[str] = ()

    def allowed(self, require: str) -> tuple[str, ...]:
        """Affects whose verdict is at least ``require`` (trusted, weak or any)."""
        return tuple(n for n, r in self.reports.items() if r.verdict in ALLOWED[require])

    def save(self, folder: Path) -> None:
        """Write the probes and ``report.json``."""
        self.probes.save(folder)
        records = {affect: asdict(report) for affect, report in self.reports.items()}
        write_text(folder / "report.json", json.dumps(records, indent=2, ensure_ascii=False))


def obtain_perception(
    policy: Policy,
    signals: SignalsConfig,
    progress: Progress = silent,
) -> Perception:
    """Probes of this model and their validation, fitted now or taken from the cache.

    Args:
        policy: Read with the adapter off.
        signals: Its ``affect`` names corpora, affects and candidates.
        progress: Told how many utterances are read.
    """
    config, author_groups = signals.affect, signals.author_groups
    if config is None:
        raise ValueError("signals.affect is not part of this run.")
    corpus = load_corpus(config.corpus, config.names, author_groups)
    heldout = load_corpus(config.heldout, config.names) if config.heldout else None
    packaged = load_corpus(None, config.names, author_groups) if config.corpus else None
    notices = [*corpus.notices, *(heldout.notices if heldout else ())]
    layers = layers_at(config.layers, policy.num_layers)
    recipe = [
        code_digest(),
        identity(policy),
        [c and c.digest for c in (corpus, heldout, packaged)],
        layers,
        what_is_measured(signals),
    ]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    folder, fingerprint = cache_root() / "probes" / key, policy.base.fingerprint
    kept = read_kept(folder, lambda path: _read(path, fingerprint)) if signals.cache else None
    if kept is not None:
        return Perception(*kept, corpus, notices)

    def sample(of: Corpus | None) -> Sample | None:
        if of is None:
            return None
        return Sample(of, utterance_states(policy, of, layers, signals.cache, progress), layers)

    states = utterance_states(policy, corpus, layers, signals.cache, progress)
    fitted_on = Sample(corpus, states, layers)
    tested, other = sample(heldout), sample(packaged)
    probes = fit_probes(states, corpus, layers, config, fingerprint)
    reports = validate_probes(probes, fitted_on, tested, tested if config.corpus is None else other)
    perception = Perception(probes, reports, corpus, notices)
    if signals.cache:
        keep(folder, lambda path: replace_folder(path, perception.save))
    return perception


def what_is_measured(signals: SignalsConfig) -> dict[str, Any]:
    """The config of the packaged signals, less what only decides how their figures are used."""
    values = asdict(signals)
    del values["own"]
    for key in ("require", "stale_auroc_drop", "stale_distance"):
        (values["affect"] or {}).pop(key, None)
    return values


def _read(folder: Path, fingerprint: str) -> tuple[AffectProbes, dict[str, ProbeReport]]:
    records = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    reports = {
        affect: ProbeReport(**{**record, "ci95": record["ci95"] and tuple(record["ci95"])})
        for affect, record in records.items()
    }
    return AffectProbes.load(folder, fingerprint), reports
