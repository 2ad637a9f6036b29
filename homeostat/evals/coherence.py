"""Is what the model says still language? Its own sampled replies, as the plain base reads them.

Likelihood alone rewards loops, so a reply must also pass the gates of `steering.filters`, whose
limits are multiples of the median perplexity of the base's own replies to the same messages. Both
arms answer with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from homeostat.config.filters import standard_filter
from homeostat.evals.items import Item
from homeostat.evals.subject import Reply, Subject
from homeostat.rollout.replies import Sampling
from homeostat.signals.repetition import repetition
from homeostat.steering.filters import Steered, is_coherent, judge
from homeostat.types import Conversation, Turn

TEMPERATURE = 0.7  # where the base is coherent; greedy replies of a small model loop by themselves
KEY = 7919  # of the random numbers, the same for every arm


def coherence(subject: Subject, items: Sequence[Item], max_new_tokens: int) -> list[dict[str, Any]]:
    """One row per message.

    A row has ``passes`` (0 or 1, every gate of coherence), ``failed`` (the gates it fell through),
    ``log_perplexity`` under the base (mean nats per token; None for an empty reply, which also
    fails), ``repetition``, ``tokens`` and the ``reply``.

    Args:
        subject: As it is now; its base reads the replies.
        items: With ``text``, a message to be answered.
        max_new_tokens: Of a reply. Shorter ones than the gates' ``min_tokens`` fail.
    """
    talks = [Conversation((Turn("user", item["text"]),)) for item in items]
    sampling = Sampling(max_new_tokens, TEMPERATURE, (KEY,))
    with subject.reference():
        own = [float(reply.base_nll_R.mean()) for reply in subject.sample(talks, sampling)]
    usual = float(np.exp(np.nanmedian(own)))
    replies = subject.sample(talks, sampling)
    return [
        {"item": item["id"]} | _row(reply, usual)
        for item, reply in zip(items, replies, strict=True)
    ]


def _row(reply: Reply, base_perplexity: float) -> dict[str, Any]:
    nll = reply.base_nll_R
    gates = standard_filter()
    failed = judge(Steered(reply.text, reply.ids, nll, 0.0), gates, base_perplexity, ())
    return {
        "passes": float(is_coherent(failed)),
        "failed": list(failed),
        "log_perplexity": float(nll.mean()) if len(nll) else None,
        "repetition": repetition(reply.text),
        "tokens": len(reply.ids),
        "reply": reply.text,
    }


def plain_text(subject: Subject, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Plain texts without a chat template: a row has ``nll``, mean nats per token, and ``tokens``.

    Args:
        subject: As it is now.
        items: With ``text``.
    """
    found = subject.read([item["text"] for item in items])
    return [
        {"item": item["id"], "nll": float(own.mean()), "tokens": len(own)}
        for item, own in zip(items, found, strict=True)
    ]
