"""Is what the model says still language? Its own sampled replies, as the plain base reads them.

Likelihood alone rewards loops, so a reply must also pass the gates of `steering.filters`, whose
limits are multiples of the median perplexity of the base's own replies to the same messages. Both
arms answer with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat.config.evals import EvalConfig
from homeostat.config.filters import standard_filter
from homeostat.evals.caveats import Row
from homeostat.evals.evaluation import Evaluation, Reading
from homeostat.evals.items import Item
from homeostat.evals.subject import SampledReply, Subject
from homeostat.rollout.replies import Sampling
from homeostat.signals.repetition import repetition
from homeostat.steering.filters import Steered, failed_gates, is_coherent
from homeostat.types import Conversation, Turn

TEMPERATURE = 0.7  # where the base is coherent; greedy replies of a small model loop by themselves
KEY = 7919  # of the random numbers, the same for every arm


def sampled_rows(subject: Subject, items: Sequence[Item], settings: EvalConfig) -> list[Row]:
    """One row per message.

    A row has ``passes`` (0 or 1, every gate of coherence), ``failed`` (the gates it fell through),
    ``log_perplexity`` under the base (mean nats per token; None for an empty reply, which also
    fails), ``repetition``, ``tokens`` and the ``reply``.

    Args:
        subject: As it is now; its base reads the replies.
        items: With ``text``, a message to be answered.
        settings: Length of a reply. Shorter ones than the gates' ``min_tokens`` fail.
    """
    talks = [Conversation((Turn("user", item["text"]),)) for item in items]
    sampling = Sampling(settings.reply_tokens, TEMPERATURE, (KEY,))
    with subject.reference():
        of_base = [float(reply.base_nll_R.mean()) for reply in subject.sample(talks, sampling)]
    usual = float(np.exp(np.nanmedian(of_base)))
    replies = subject.sample(talks, sampling)
    return [
        {"item": item["id"]} | _row(reply, usual)
        for item, reply in zip(items, replies, strict=True)
    ]


def _row(reply: SampledReply, base_perplexity: float) -> Row:
    nll = reply.base_nll_R
    gates = standard_filter()
    failed = failed_gates(Steered(reply.text, reply.ids, nll, 0.0), gates, base_perplexity, ())
    return {
        "passes": float(is_coherent(failed)),
        "failed": list(failed),
        "log_perplexity": float(nll.mean()) if len(nll) else None,
        "repetition": repetition(reply.text),
        "tokens": len(reply.ids),
        "reply": reply.text,
    }


EVALUATION = Evaluation(
    name="coherence",
    packaged="contexts.jsonl",
    columns={"text": str},
    claim="passes",
    given=Reading(sampled_rows, ("log_perplexity", "repetition"), talks=2),
    good=1,
)
