"""Users who open with what real ones have said: the first words of conversations in a file.

What follows is a scripted user's: a file does not say how its people would have answered another
reply, so feelings begin at the home of the kind of user that is chosen, move with the replies, and
are voiced in the packaged phrases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from homeostat.bots.affect import content_words
from homeostat.bots.scripted import HELD_OUT, TRAIN, ScriptedBot, ScriptedBots, split_of
from homeostat.config.bots import FileBotConfig
from homeostat.config.rows import read_rows
from homeostat.errors import HomeostatError

LEAST = 8  # openings of training, and of held-out users
# Moves whose words name a topic or a claim, of which a file says nothing.
NEEDS_TOPIC = ("move_claim", "move_pressure", "move_authority", "move_topic_shift")
PEOPLE = ("user", "human")
FORM = (
    'one JSON object a line, with messages ({"role": "user", "content": ...}) or conversations '
    '({"from": "human", "value": ...})'
)


class FileBots:
    """A population of users with openings from a file; held-out ones have openings of their own."""

    def __init__(self, config: FileBotConfig) -> None:
        """Read the file.

        Raises:
            HomeostatError: It cannot be read, a line is no conversation, there are too few, or the
                schedule has a move that needs a topic.
        """
        for move in config.user.schedule:
            if move in NEEDS_TOPIC:
                raise HomeostatError(
                    f"bot.user={config.user.name} makes the move {move}, whose words need a topic "
                    "of ours; choose curious, confused, bored or frustrated, or another schedule."
                )
        self.config = replace(config.user, name=config.name)
        ScriptedBots(self.config)  # checks the moves
        self.openings = split_openings(read_openings(config.path), config.held_out)
        counts = {name: len(texts) for name, texts in self.openings.items()}
        if min(counts.values()) < LEAST:
            raise HomeostatError(
                f"bot.path={config.path} gives {counts[TRAIN]} different openings to training and "
                f"{counts[HELD_OUT]} to held-out users; at least {LEAST} each are needed: give "
                f"more, or change bot.held_out={config.held_out:g}."
            )

    def spawn(self, seed: int) -> ScriptedBot:
        """The user of episode ``seed``."""
        texts = self.openings[split_of(seed)]
        return ScriptedBot(self.config, seed, topic_of(texts[seed % len(texts)]))


def topic_of(opening: str) -> dict[str, Any]:
    """A topic that is known by its opening alone."""
    keywords = sorted(content_words(opening))
    return {"openings": [opening], "keywords": keywords, "followups": [], "claim": "", "truth": ""}


def read_openings(path: str) -> list[str]:
    """What the user says first in each conversation of a file, each once, in their order.

    Raises:
        HomeostatError: The file cannot be read, or a line is no conversation with a user in it.
    """
    rows = read_rows(path, f"bot.path={path}", f"give {FORM}")
    return list(dict.fromkeys(opening_of(row, f"bot.path={path}, line {n}") for n, row in rows))


def opening_of(row: Mapping[str, Any], where: str) -> str:
    """The first words of the user in a conversation, without what a system line says.

    Args:
        row: In OpenAI's form, or ShareGPT's.
        where: It stands, for errors.

    Raises:
        HomeostatError: It is no conversation, or no user speaks in it.
    """
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise HomeostatError(f"{where} is no conversation; give {FORM}.")
    for turn in turns:
        if turn.get("role", turn.get("from")) in PEOPLE:
            said = _text(turn.get("content", turn.get("value")))
            if said:
                return said
    raise HomeostatError(f"{where} has no words of a user; leave it out, or give {FORM}.")


def _text(content: Any) -> str:
    """The words of a message, which may come in parts; images and the like are passed over."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = " ".join(part for part in parts if isinstance(part, str))
    return content.strip() if isinstance(content, str) else ""


def split_openings(openings: Sequence[str], held_out: float) -> dict[str, list[str]]:
    """The openings of training and of held-out users; which one it is follows from its words."""
    split: dict[str, list[str]] = {TRAIN: [], HELD_OUT: []}
    for text in openings:
        drawn = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8
        split[HELD_OUT if drawn < held_out else TRAIN].append(text)
    return split
