"""Measures the filter of steered completions on labels that were given by reading each of them.

python scripts/measure_filter.py [--json] [--labels FILE] [--off LIMIT]

Every completion of tests/data/steered_labels.jsonl is judged with the defaults of `FilterConfig`
and the narration patterns of its persona, its perplexity beside the base's own at the temperature
that it was sampled at. Two questions, each with a Wilson interval of 95%:

    kept        is what the filter keeps coherent, and does it keep what is coherent? Narration and
                refusals must fall.
    coherent    the same for the gates of coherence alone, on which a stage's coherence rests.
                Narration and refusals must pass.

The defaults were chosen on the half ``tuned``; ``held_out`` was looked at once. The halves follow
from a hash of the id. Where a file has the label of a second reader (tests/data/long_labels.jsonl),
completions on which the two do not agree whether they must pass are counted and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from homeostat.config.filters import FilterConfig, standard_filter
from homeostat.config.register import config_part
from homeostat.steering.filters import GATES, Steered, failed_gates, is_coherent

PACKAGED = Path(__file__).resolve().parents[1] / "tests" / "data" / "steered_labels.jsonl"
LABELS = ("coherent", "narrating", "refusing", "looping", "diffuse", "word_salad")
MEANT = {"kept": LABELS[:1], "coherent": LABELS[:3]}  # labels that must pass
HALVES = ("tuned", "held_out")


@dataclass(frozen=True)
class Judged:
    """A labelled completion and the gates that it fell through."""

    label: str
    half: str
    temperature: float
    failed: tuple[str, ...]
    second: str | None = None

    def is_disputed(self, question: str) -> bool:
        """Whether a second reader says otherwise about whether it must pass."""
        meant = MEANT[question]
        return self.second is not None and (self.second in meant) != (self.label in meant)

    def passes(self, question: str) -> bool:
        """Whether the filter lets it pass; ``question`` is a key of `MEANT`."""
        return is_coherent(self.failed) if question == "coherent" else not self.failed


def half_of(name: str) -> str:
    """The half that an id belongs to."""
    return HALVES[hashlib.sha256(name.encode()).digest()[0] % 2]


def read_narration(personas: Iterable[str]) -> dict[str, list[re.Pattern[str]]]:
    """The narration patterns of each persona, from its YAML."""
    return {
        name: [re.compile(pattern) for pattern in config_part(f"persona={name}").narration]
        for name in personas
    }


def judge_all(rows: Sequence[dict[str, Any]], config: FilterConfig) -> list[Judged]:
    """Every row of the file, judged."""
    narration = read_narration(sorted({row["persona"] for row in rows}))
    return [
        Judged(
            row["label"],
            half_of(row["id"]),
            row["temperature"],
            failed_gates(
                Steered(row["text"], tuple(row["ids"]), np.array(row["nll"]), float(row["dose"])),
                config,
                row["base_perplexity"],
                narration[row["persona"]],
            ),
            row.get("second"),
        )
        for row in rows
    ]


def share(hits: int, of: int) -> dict[str, Any]:
    """A share with its counts and Wilson's interval; None where nothing is counted."""
    if of == 0:
        return {"share": None, "low": None, "high": None, "hits": 0, "of": 0}
    interval = stats.binomtest(hits, of).proportion_ci(method="wilson")
    return {
        "share": hits / of,
        "low": float(interval.low),
        "high": float(interval.high),
        "hits": hits,
        "of": of,
    }


def answer(judged: Sequence[Judged], question: str) -> dict[str, Any]:
    """Precision and recall of letting pass."""
    agreed = [one for one in judged if not one.is_disputed(question)]
    passed = [one for one in agreed if one.passes(question)]
    meant = [one for one in agreed if one.label in MEANT[question]]
    right = sum(one.label in MEANT[question] for one in passed)
    return {
        "precision": share(right, len(passed)),
        "recall": share(right, len(meant)),
        "disputed": len(judged) - len(agreed),
    }


def by_label(judged: Sequence[Judged]) -> dict[str, Any]:
    """Per label how many there are, how many fell, and at which gates."""
    counts = {}
    for label in LABELS:
        failures = [one.failed for one in judged if one.label == label]
        fell = Counter(gate for failed in failures for gate in failed)
        counts[label] = {
            "n": len(failures),
            "fell": sum(bool(failed) for failed in failures),
            "gates": {gate: fell[gate] for gate in GATES if fell[gate]},
        }
    return counts


def measure(path: Path, config: FilterConfig) -> dict[str, Any]:
    """Both questions on both halves, on all, and by temperature; JSON-ready."""
    lines = path.read_text(encoding="utf-8").splitlines()
    judged = judge_all([json.loads(line) for line in lines], config)
    parts = {half: [one for one in judged if one.half == half] for half in HALVES}
    warmth = {
        f"at {t:g}": [one for one in judged if one.temperature == t]
        for t in sorted({one.temperature for one in judged})
    }
    return {
        "filter": vars(config),
        "parts": {
            name: {"n": len(part), "labels": by_label(part)}
            | {question: answer(part, question) for question in MEANT}
            for name, part in {**parts, "all": judged, **warmth}.items()
        },
    }


def shown(counted: dict[str, Any]) -> str:
    """One share as the table shows it."""
    if counted["share"] is None:
        return "none".rjust(28)
    interval = f"[{counted['low']:.2f}, {counted['high']:.2f}]"
    return f"{counted['share']:>6.2f} {interval} {counted['hits']:>3}/{counted['of']:<3}".rjust(28)


def table(results: dict[str, Any]) -> list[str]:
    """Lines: precision and recall by half, then the labels and their gates."""
    lines = [f"{'':<20}{'precision':>28}{'recall':>28}"]
    for name, part in results["parts"].items():
        for question in MEANT:
            answers = part[question]
            title = f"{name}, {question}"
            lines.append(f"{title:<20}{shown(answers['precision'])}{shown(answers['recall'])}")
    lines.append(f"{'label':<12}{'n':>5}{'fell':>6}  gates, each as often as it was failed")
    for label, row in results["parts"]["all"]["labels"].items():
        gates = ", ".join(f"{gate} {count}" for gate, count in row["gates"].items())
        lines.append(f"{label:<12}{row['n']:>5}{row['fell']:>6}  {gates}")
    return lines


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument(
        "--labels", type=Path, default=PACKAGED, help="a JSONL file of the packaged one's shape"
    )
    parser.add_argument(
        "--off", choices=[f.name for f in fields(FilterConfig)], help="a limit to do without"
    )
    options = parser.parse_args()
    limits = standard_filter()
    if options.off:
        limits = replace(limits, **{options.off: None})
    results = measure(options.labels, limits)
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
