"""The evaluations that every arm of a run goes through, on the same items, and their comparison.

    for each arm (base, trained): for each evaluation: one row per item      evals/<name>.jsonl
    compare: paired differences, sign-flip tests corrected after Holm over the figures that carry
    the claim, effect sizes, and the smallest effect that so many items can show

A figure with a caveat is not reported as what it claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from homeostat.config.evals import EvalConfig
from homeostat.evals.caveats import Row, mode_of
from homeostat.evals.evaluation import Evaluation, chosen_evaluations
from homeostat.evals.stats import PairedTest, holm, level, paired_test
from homeostat.evals.subject import Subject
from homeostat.types import Progress, silent


@dataclass(frozen=True)
class Suite:
    """Some evaluations, each on so many items.

    Attributes:
        config: On how many items, from which files, read in which mode.
        evaluations: By name, in the order in which they are measured.
    """

    config: EvalConfig
    evaluations: Mapping[str, Evaluation]

    @classmethod
    def of(cls, config: EvalConfig) -> Suite:
        """The suite that ``eval.suite`` names."""
        return cls(config, chosen_evaluations(config))

    def measure(
        self, subject: Subject, arm: str, progress: Progress = silent
    ) -> dict[str, list[Row]]:
        """Rows of every evaluation, by its name.

        Args:
            subject: As it is now.
            arm: Name of its state, such as ``base``.
            progress: Told how many evaluations are done.
        """
        measured: dict[str, list[Row]] = {}
        for done, name in enumerate(self.evaluations, 1):
            measured[name] = [{"arm": arm} | row for row in self.rows(subject, name)]
            progress(done, len(self.evaluations))
        return measured

    def rows(self, subject: Subject, name: str) -> list[Row]:
        """A row per item of one evaluation."""
        evaluation = self.evaluations[name]
        reading = evaluation.reading(self.config.mode)
        return reading.rows(subject, evaluation.items(self.config), self.config)

    def compare(
        self, before: Mapping[str, Sequence[Row]], after: Mapping[str, Sequence[Row]]
    ) -> dict[str, Any]:
        """Every figure of every evaluation, before and after; ``after`` may be empty.

        Returns:
            By evaluation: ``claim``, ``mode``, ``caveat``, ``level``, ``metrics`` (an estimate,
            ``effect``, ``p``, ``smallest`` each; ``p_holm`` for the claim), and what else the
            evaluation keeps by arm.
        """
        compared: dict[str, Any] = {}
        claims: dict[str, float | None] = {}
        for name, rows in before.items():
            evaluation, later = self.evaluations[name], after.get(name)
            tests = {key: self._test(rows, later, key) for key in evaluation.compared(rows)}
            claims[name] = tests[evaluation.claim].p
            arms = {"base": rows} | ({"trained": later} if later else {})
            compared[name] = {
                "claim": evaluation.claim,
                "mode": mode_of(rows),
                "caveat": evaluation.both_caveats(rows, later),
                "level": level(rows, evaluation.claim),
                "metrics": {key: _as_record(test) for key, test in tests.items()},
                **evaluation.more(arms),
            }
        for name, p in holm(claims).items():
            compared[name]["metrics"][self.evaluations[name].claim]["p_holm"] = p
        return compared

    def _test(self, before: Sequence[Row], after: Sequence[Row] | None, key: str) -> PairedTest:
        """A figure's paired test; without a second arm its mean alone."""
        old = {row["item"]: row[key] for row in before}
        new = {row["item"]: row[key] for row in after or before}
        items = [item for item in old if item in new]
        stems = {row["item"]: row.get("stem", row["item"]) for row in before}
        test = paired_test(
            [old[i] for i in items],
            [new[i] for i in items],
            groups=[stems[i] for i in items],
            samples=self.config.bootstrap_samples if after else 1,
        )
        if after:
            return test
        mean_alone = replace(test.estimate, after=None, diff=None, ci95=None)
        return PairedTest(mean_alone, test.groups, None, None, None)


def _as_record(test: PairedTest) -> dict[str, Any]:
    estimate = asdict(test.estimate)
    return estimate | {"effect": test.effect, "p": test.p, "smallest": test.smallest}
