"""Prints what the probe corpus holds: rows, lengths and question marks per affect.

python scripts/describe_corpus.py [--json] [CORPUS]
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from homeostat.config.signals import AFFECTS
from homeostat.signals.probing.corpus import Utterance, load_corpus


def describe(rows: list[Utterance]) -> dict[str, float]:
    """Counts, quartiles of the length in words, and shares of some utterances."""
    turns = [row.conversation.turns for row in rows]
    words = [len(said[-1].text.split()) for said in turns]
    low, middle, high = np.percentile(words, [25, 50, 75])
    return {
        "rows": len(rows),
        "authors": len({row.group for row in rows}),
        "replies": sum(len(said) > 1 for said in turns),
        "words_25": float(low),
        "words_50": float(middle),
        "words_75": float(high),
        "question_mark_share": float(np.mean(["?" in said[-1].text for said in turns])),
    }


def main() -> None:
    """Describe a corpus by affect, as a table or as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", help="a JSONL file; the packaged corpus if absent")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    utterances = load_corpus(options.corpus, list(AFFECTS)).utterances
    parts = {name: [u for u in utterances if u.labels.get(name) == 1] for name in AFFECTS}
    parts["negative"] = [u for u in utterances if u.labels.get("sentiment") == 0]
    parts["no affect"] = [
        u for u in utterances if "sentiment" not in u.labels and not any(u.labels.values())
    ]
    table = {name: describe(rows) for name, rows in parts.items()}
    if options.json:
        print(json.dumps(table))
        return
    print("affect".ljust(14), *(key.rjust(10) for key in ("rows", "authors", "replies")), end=" ")
    print("words (quartiles)".rjust(20), "with ?".rjust(8))
    for name, row in table.items():
        quartiles = "/".join(f"{row[f'words_{q}']:.0f}" for q in (25, 50, 75))
        counts = (f"{row[key]:.0f}".rjust(10) for key in ("rows", "authors", "replies"))
        print(name.ljust(14), *counts, quartiles.rjust(20), end=" ")
        print(f"{row['question_mark_share']:.0%}".rjust(8))


if __name__ == "__main__":
    main()
