"""The trait in what a model says itself, as the frozen base reads it.

    shown = (log p(reply | positive side, prompt) - log p(reply | negative side, prompt)) / tokens

With both sides as likely beforehand that is, by Bayes, the log-odds of the persona's two
descriptions given the reply, per token. Given pairs say what a model would rather say; this says
whether the trait shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from homeostat.config.persona import PersonaConfig
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import read_replies, reply_ids
from homeostat.steering.vectors import as_persona
from homeostat.types import Conversation, Turn

SIDES = ("positive", "negative")


def shown_nats(
    policy: Policy, persona: PersonaConfig, talks: Sequence[Conversation]
) -> list[float | None]:
    """Log-odds of the positive side given each reply, nats per token, under the frozen base.

    Args:
        policy: Only its base is asked.
        persona: The two sides.
        talks: Each ends with a reply; system turns are left away. An empty reply shows nothing:
            None.
    """
    spoken = [i for i, talk in enumerate(talks) if reply_ids(talk)]
    plain = [talks[i].unprompted.turns for i in spoken]
    with policy.reference():
        means = [
            [
                float(one.logprob.mean())
                for one in read_replies(policy, [_told(persona, side, turns) for turns in plain])
            ]
            for side in SIDES
        ]
    found: list[float | None] = [None] * len(talks)
    for place, positive, negative in zip(spoken, *means, strict=True):
        found[place] = positive - negative
    return found


def _told(persona: PersonaConfig, side: str, turns: Sequence[Turn]) -> Conversation:
    system = as_persona(persona, side, "").turns[0]
    return Conversation((system, *turns))
