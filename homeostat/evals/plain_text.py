"""How well the model predicts plain texts, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from homeostat.config.evals import EvalConfig
from homeostat.evals.caveats import Row
from homeostat.evals.evaluation import Evaluation, Reading
from homeostat.evals.items import Item
from homeostat.evals.subject import Subject


def predicted_rows(subject: Subject, items: Sequence[Item], _settings: EvalConfig) -> list[Row]:
    """A row has ``nll``, mean nats per token, and ``tokens``, how many were predicted."""
    nll = subject.read([item["text"] for item in items])
    return [
        {"item": item["id"], "nll": float(nats.mean()), "tokens": len(nats)}
        for item, nats in zip(items, nll, strict=True)
    ]


EVALUATION = Evaluation(
    name="plain_text",
    packaged="feedback.jsonl",
    columns={"text": str},
    claim="nll",
    given=Reading(predicted_rows),
    good=-1,
)
