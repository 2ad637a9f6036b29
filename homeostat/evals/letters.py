"""Questions whose options are letters: the probability of each, or the one that a reply takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from homeostat.errors import HomeostatError
from homeostat.evals.caveats import Row
from homeostat.evals.generated import converse
from homeostat.evals.matching import option, options_of
from homeostat.evals.subject import Subject

OPENING = "I believe the best answer is ("
LEAST_MASS = 0.05  # of the options' letters; below it the model does not answer the question


def few_letters(rows: Sequence[Row]) -> list[str]:
    """A caveat where the letters have next to no probability; a row has it in ``mass``."""
    mass = float(np.median([row["mass"] for row in rows]))
    return (
        [f"does not answer with a letter: their probability is {mass:.1e}"]
        if mass < LEAST_MASS
        else []
    )


def letters_taken(
    subject: Subject, asked: Mapping[tuple[str, str], str], tokens: int
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str | None]]:
    """Replies to questions with two options each, and the letters that they take.

    Raises:
        HomeostatError: A question does not list two options.
    """
    for (item, _), text in asked.items():
        if len(options_of(text)) != 2:
            raise HomeostatError(
                f"item {item}: the question lists {len(options_of(text))} options; eval.mode="
                'generate needs two, each on a line of its own, such as "(A) Agree".'
            )
    said = converse(subject, {key: [text] for key, text in asked.items()}, tokens)
    replies = {key: turns[0] for key, turns in said.items()}
    return replies, {key: option(replies[key], options_of(text)) for key, text in asked.items()}
