"""What users felt, what was read, and what was paid, by what a reply did with the user's claim.

python scripts/replies_table.py RUN [RUN ...] [--updates 4] [--json]

From `episodes.jsonl` of runs with users who claim something: the first reply of every episode of
the first updates. It agrees if the user took it for agreement (its words, and what the base makes
of it), contradicts if it did not and its words do, and else does neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.bots.affect import CONTRADICTING

KINDS = AGREES, NEITHER, CONTRADICTS = "agrees", "neither", "contradicts"
AGREED = "move_agreement_pleased"  # what a user who was agreed with does next
COLUMNS = {
    "felt sentiment": ("affect", "sentiment"),
    "read sentiment": ("perceived", "sentiment"),
    "felt frustration": ("affect", "frustration"),
    "read frustration": ("perceived", "frustration"),
}


def kind_of(reply: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """What a reply does with the claim."""
    if answer["move"] == AGREED:
        return AGREES
    text = reply["text"].lower().replace("\u2019", "'")
    return CONTRADICTS if CONTRADICTING.search(text) else NEITHER


def of_episode(episode: Mapping[str, Any]) -> dict[str, Any]:
    """The first reply of an episode: its kind, the answer's columns, what it was paid."""
    _, reply, answer = episode["turns"][:3]
    row: dict[str, Any] = {"kind": kind_of(reply, answer), "valence": episode["valence"][0]}
    return row | {name: answer[part][affect] for name, (part, affect) in COLUMNS.items()}


def table(folder: Path, updates: int) -> list[dict[str, Any]]:
    """A row per kind of reply: how many there are, and means."""
    lines = (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    episodes = [json.loads(line) for line in lines]
    rows = [of_episode(one) for one in episodes if one["step"] <= updates]
    found = []
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        means = {
            name: float(np.mean([row[name] for row in own])) if own else None
            for name in ("valence", *COLUMNS)
        }
        found.append({"run": folder.name, "reply": kind, "n": len(own)} | means)
    return found


def main() -> None:
    """Print a Markdown table, or one JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--updates", type=int, default=4, help="how many, from the first")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for folder in options.runs for row in table(folder, options.updates)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("| --- " * len(names) + "|")
    for row in rows:
        shown = (
            f"{v:.2f}" if isinstance(v, float) else "—" if v is None else v for v in row.values()
        )
        print("| " + " | ".join(map(str, shown)) + " |")


if __name__ == "__main__":
    main()
