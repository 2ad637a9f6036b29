"""The trait in what a model says itself, as the frozen base reads it: in two ways.

    nats  = (log p(reply | positive side, prompt) - log p(reply | negative side, prompt)) / tokens

With both sides as likely beforehand that is, by Bayes, the log-odds of the persona's two
descriptions given the reply, per token. Given pairs say what a model would rather say; this says
whether the trait shows.

    shift = mean over the reply's tokens of h . v / |v|^2, over the blocks of a persona vector v

is where the base's own residual stream lies along that vector while it reads the reply, in doses.
Its zero means nothing: only differences between replies do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.config.persona import PersonaConfig
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad, until_last_response
from homeostat.models.forward import forward, read_in_batches
from homeostat.models.hooks import read_residual
from homeostat.rollout.replies import read_replies, reply_ids
from homeostat.steering.vectors import PersonaVector, as_persona
from homeostat.types import Conversation, TokenStream, Turn

SIDES = ("positive", "negative")


def shown_nats(
    policy: Policy, persona: PersonaConfig, talks: Sequence[Conversation]
) -> list[float | None]:
    """Log-odds of the positive side given each reply, nats per token, under the frozen base.

    Args:
        policy: Only its base is asked.
        persona: The two sides.
        talks: Each ends with the one reply that is read, earlier ones being somebody else's;
            system turns are left away. An empty reply shows nothing: None.
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


@torch.no_grad()
def shown_shift(
    policy: Policy, vector: PersonaVector, talks: Sequence[Conversation]
) -> list[float | None]:
    """Where each reply lies along the vector, doses, under the frozen base.

    Args:
        policy: Only its base is asked.
        vector: The persona's, read off the base.
        talks: As in `shown_nats`.
    """
    spoken = [i for i, talk in enumerate(talks) if reply_ids(talk)]
    streams = [until_last_response(policy.encode(talks[i].unprompted)) for i in spoken]
    layers = sorted(vector.vectors)

    def read(part: list[TokenStream], _places: list[int]) -> list[float]:
        batch = pad(part, policy.pad_id, policy.device)
        counted = batch.response_mask
        means: dict[int, Tensor] = {}

        def on_layer(layer: int, hidden: Tensor) -> None:
            total = (hidden.float() * counted[..., None]).sum(dim=1)
            means[layer] = (total / counted.sum(dim=1, keepdim=True)).cpu()

        with read_residual(policy.trunk, layers, on_layer, stop_after=True):
            forward(policy, batch)
        rows = range(len(part))
        return [vector.dose_of({n: means[n][row] for n in layers}) for row in rows]

    found: list[float | None] = [None] * len(talks)
    with policy.reference():
        for place, dose in zip(spoken, read_in_batches(streams, read), strict=True):
            found[place] = dose
    return found


def _told(persona: PersonaConfig, side: str, turns: Sequence[Turn]) -> Conversation:
    system = as_persona(persona, side, "").turns[0]
    return Conversation((system, *turns))
