"""Writes homeostat/data/affect_users.jsonl: what simulated users say, graded by what moved them.

python scripts/build_user_corpus.py

Users of the training split, none of whom a run ever meets, hear replies with random features. Each
message is kept with a level per affect: how far the user is from home, on top of the home of the
average user, since words show the former alone. No phrase, topic or opening of a held-out user is
among them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_calls import run_config

import homeostat.data
from homeostat.bots.affect import ReplyFeatures
from homeostat.bots.scripted import MixedBots
from homeostat.config.signals import AFFECTS

FIRST_SEED = 2_000_000_000  # beyond every run's
USERS, REPLIES, TURNS = 500, 3, 3
PATH = Path(homeostat.data.__file__).parent / "affect_users.jsonl"


def rows() -> Iterator[dict[str, Any]]:
    """One row per message, three messages of each user, after one to three replies."""
    bots = MixedBots(run_config().bot)
    homes = [member.config.initial for member in bots.members]
    average = {name: sum(home.get(name, 0.0) for home in homes) / len(homes) for name in AFFECTS}
    for number in range(USERS):
        chance = random.Random(number)
        for _ in range(REPLIES):
            user = bots.spawn(FIRST_SEED + number)
            turn = user.opening()
            for _ in range(chance.randint(1, TURNS)):
                turn = user.react(features(chance))
            shift = user.shift
            levels = {name: average[name] + shift[name] for name in AFFECTS}
            yield {"text": turn.text, "group": f"user {number}"} | {
                f"{name}_level": round(min(1.0, max(-1.0 if name == "sentiment" else 0.0, x)), 3)
                for name, x in levels.items()
            }


def features(chance: random.Random) -> ReplyFeatures:
    """A reply as it might be: anything from salad to a right answer."""
    return ReplyFeatures(
        relevance=chance.random(),
        coherence=chance.betavariate(2.0, 1.2),
        length=chance.random(),
        agreement=chance.choice((-1.0, 0.0, 0.0, 0.0, 1.0)),
        acknowledgement=float(chance.random() < 0.25),
        question=float(chance.random() < 0.25),
        novelty=chance.betavariate(3.0, 1.0),
    )


def main() -> None:
    """Write the file."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows()]
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{PATH}: {len(lines)} rows")


if __name__ == "__main__":
    main()
