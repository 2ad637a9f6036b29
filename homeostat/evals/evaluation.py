"""What an evaluation is: a record of its items, its rows, its claim, and what spoils the claim.

An evaluation is one module that holds its record, ``EVALUATION``, and one YAML file of the config
group ``evaluation`` that names it. Nothing else knows it: `suite` measures and compares whatever
records it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object

from homeostat.config.evals import GENERATE, EvalConfig
from homeostat.errors import HomeostatError
from homeostat.evals.caveats import Row, copied, mode_of, unread_replies
from homeostat.evals.items import Item, Sides, no_flaw, read_items, spread_items
from homeostat.evals.subject import Subject

Rows = Callable[[Subject, Sequence[Item], EvalConfig], list[Row]]
Caveats = Callable[[Sequence[Row]], list[str]]


def no_caveats(_rows: Sequence[Row]) -> list[str]:
    """Nothing to be wary of."""
    return []


def nothing_more(_rows_by_arm: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The comparison of figures is all."""
    return {}


@dataclass(frozen=True)
class Reading:
    """One way of reading an evaluation's figures.

    Attributes:
        rows: A row per item, in the order of the items, from the subject as it is now. A row has
            the ``item``'s id, the figures, None for one that could not be read, and
            ``mode: generate`` where they come from the subject's own replies.
        beside: Figures that are compared beside the claim.
        talks: Replies, given or spoken, that the subject is asked for by an item; progress counts
            items by them.
        unreadable: Why an arm's rows say little, whatever they say.
    """

    rows: Rows
    beside: tuple[str, ...] = ()
    talks: int = 1
    unreadable: Caveats = no_caveats


@dataclass(frozen=True)
class Evaluation:
    """The record of an evaluation.

    Attributes:
        name: Key in ``eval.suite``, and of the file of rows.
        packaged: Its file among the packaged data; None = a file must be given.
        columns: What every row of the file must have, and its type.
        claim: The figure that carries what the evaluation is about.
        given: Read from log-probabilities of given answers.
        spoken: Read from the subject's own replies, ``eval.mode=generate``; None = as given.
        good: +1 where more of the claim is better, -1 where less is, 0 where neither.
        best_at_0: Whether a claim on either side of 0 is as bad.
        caveats: Why an arm's figures are not to be read as the claim, by its own controls.
        more: What else the comparison keeps, from the rows of each arm.
        flaw: Why an item cannot be used; None if it can.
        sides: What an item asks and tells apart; None = nothing that could contradict itself.
        choose: So many of the items; None = all of them.
    """

    name: str
    packaged: str | None
    columns: Mapping[str, type]
    claim: str
    given: Reading
    spoken: Reading | None = None
    good: int = 0
    best_at_0: bool = False
    caveats: Caveats = no_caveats
    more: Callable[[Mapping[str, Sequence[Row]]], dict[str, Any]] = nothing_more
    flaw: Callable[[Item], str | None] = no_flaw
    sides: Callable[[Item], Sides] | None = None
    choose: Callable[[Sequence[Item], int | None], list[Item]] = spread_items

    def items(self, config: EvalConfig) -> list[Item]:
        """The items, as many as the config asks for.

        Raises:
            HomeostatError: The file is missing, or a row is not what it must be; says which line.
        """
        path = config.files.get(self.name)
        key = f"eval.files.{self.name}"
        items = read_items(path, self.packaged, self.columns, self.flaw, self.sides, key)
        return self.choose(items, config.items.get(self.name))

    def reading(self, mode: str) -> Reading:
        """How figures are read in a mode."""
        return self.spoken if mode == GENERATE and self.spoken is not None else self.given

    def compared(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """The figures that are compared, the claim first."""
        return self.claim, *self.reading(mode_of(rows)).beside

    def unreadable(self, rows: Sequence[Row]) -> list[str]:
        """Why an arm's rows say little, whatever they say."""
        replies = unread_replies(self.claim, rows) if mode_of(rows) == GENERATE else []
        return replies + self.reading(mode_of(rows)).unreadable(rows)

    def caveat(self, rows: Sequence[Row]) -> str | None:
        """Why an arm's figure is not to be read as the claim, by its own controls."""
        reasons = [*self.caveats(rows), *self.unreadable(rows), *copied(self.claim, rows)]
        return "; ".join(reasons) or None

    def both_caveats(self, base: Sequence[Row], trained: Sequence[Row] | None) -> str | None:
        """The base's caveat, and what cannot be read of the trained arm though of the base."""
        reasons = [self.caveat(base)]
        if trained:
            of_base = self.unreadable(base)
            news = [reason for reason in self.unreadable(trained) if reason not in of_base]
            reasons += [f"trained: {reason}" for reason in news]
        return "; ".join(reason for reason in reasons if reason) or None


def known_evaluations(config: EvalConfig) -> dict[str, Evaluation]:
    """The record of every evaluation that the config knows, by name."""
    return {name: load_evaluation(name, config) for name in config.evaluations}


def chosen_evaluations(config: EvalConfig) -> dict[str, Evaluation]:
    """The records of ``eval.suite``, by name and in its order."""
    return {name: load_evaluation(name, config) for name in config.suite}


def load_evaluation(name: str, config: EvalConfig) -> Evaluation:
    """The record that ``eval.evaluations.<name>`` names.

    Raises:
        HomeostatError: It cannot be imported, is no record, or is that of another name.
    """
    target = config.evaluations[name]._target_
    key = f"eval.evaluations.{name}._target_={target}"
    try:
        record = get_object(target)
    except Exception as error:  # whatever a module of the user's raises when it is imported
        raise HomeostatError(
            f"{key} cannot be imported: {error.__cause__ or error}. Give the dotted path of an "
            "Evaluation that is on the Python path."
        ) from error
    if not isinstance(record, Evaluation):
        raise HomeostatError(
            f"{key} is a {type(record).__name__}; it must be a homeostat.evals.evaluation."
            "Evaluation."
        )
    if record.name != name:
        raise HomeostatError(f"{key} is the record of {record.name}; give both the same name.")
    return record
