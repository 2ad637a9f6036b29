"""Terms of the reward that the policy's weights enter directly, followed by their own derivative.

The entropy of a reply, its activation norm and the KL at its tokens are functions f(theta, y) of
the weights as well as of the reply. Then the gradient of what the policy earns has two parts:

    d/dtheta E_y[v(f(theta, y))] = E_y[v(f) d log pi(y) / dtheta]     score function
                                 + E_y[dv(f(theta, y)) / dtheta]      pathwise, y held fixed

The score function sees such a term only in so far as one reply has more of it than another: of the
first token's entropy, which all replies share, it sees nothing, and of the rest little but noise.
With ``reward.pathwise=true`` these terms are followed by the second part alone, and left out of
what the first is made of, the advantages.

Followed: sum_n dv(f(theta, y_n)) / dtheta over the replies y_n of a batch, at the very tokens that
were sampled; dv/df is - weight * sign / tolerance outside the dead zone and 0 within it. Neglected:
the first part, that is how a token changes which states come after it, and what entropy, norm and
KL these have. A set point is therefore held at the states that the policy visits, which are sampled
anew in every update: the part that is followed comes to rest where replies are as often above the
set point as below it, as the whole gradient does once replies differ little. A policy that could
come home only by going elsewhere, with the distribution in each state left as it is, would not be
found.

Not followed, because it would be wrong: perplexity. That of the base does not depend on theta at
all, y given; that of the policy itself, and k1, do, but E_y[d log pi(y) / dtheta] = 0: all that
they have to say lies in the first part. So the price of KL is not k1's derivative but that of what
k1 estimates, sum_t KL(pi(.|s_t) || reference(.|s_t)) over the whole vocabulary. k3 is a loss with a
derivative of its own already and stays as it is.

Units: one unit of valence per turn, one of the price per token, as in the reward. Where advantages
are in deviations (PPO's whitening, GRPO, reward.combine=decoupled), a tolerance stands beside a
deviation of the other terms; an automatic tolerance is that of the base. From the second minibatch
of an update on, replies are those of the policy before: they are neither weighted nor clipped.

Source: Schulman et al. 2015, "Gradient estimation using stochastic computation graphs", arXiv
1506.05254, theorem 1, for the two parts; Williams 1992 for the first. **Differs:** only the second
part of these terms is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.models.logprobs import TokenStatistics
from homeostat.reward.valence import SetPoint
from homeostat.signals.intrinsic import OF_STATES, ReplyStates
from homeostat.types import TokenBatch

# Of a chunk of logits, beside what every update has: log-probabilities of the reference, and a
# gradient for each further use of the policy's.
PATHWISE_COPIES = 3


def pathwise_loss(
    replies: Sequence[ReplyStates], set_points: Mapping[str, SetPoint]
) -> Float[Tensor, ""]:
    """Minus the valence of the replies, summed; its gradient is that of the signals themselves."""
    terms = [
        point.valence(torch.stack([OF_STATES[name](reply) for reply in replies])).sum()
        for name, point in set_points.items()
    ]
    return -torch.stack(terms).sum()


def split_replies(
    batch: TokenBatch,
    stats: TokenStatistics,
    norm_RL: Float[Tensor, "R L"],
    base_norms: Float[np.ndarray, " L"],
) -> list[ReplyStates]:
    """The response tokens of a batch, reply by reply.

    Args:
        batch: Some conversations.
        stats: Of its response tokens.
        norm_RL: Their norms.
        base_norms: The base model's mean norm at each of the L layers.
    """
    mask = batch.response_mask
    reply_R = torch.stack([mask.nonzero()[:, 0], batch.turn[mask]], dim=1)
    _, sizes = torch.unique_consecutive(reply_R, dim=0, return_counts=True)
    entropies, certainties, norms = (
        torch.split(column, sizes.tolist()) for column in (stats.entropy, stats.certainty, norm_RL)
    )
    base = torch.as_tensor(base_norms, dtype=norm_RL.dtype, device=norm_RL.device)
    return [
        ReplyStates(entropy, certainty, norm, base)
        for entropy, certainty, norm in zip(entropies, certainties, norms, strict=True)
    ]


def gradient_share(part: Sequence[Tensor | None], whole: Sequence[Tensor | None]) -> float:
    """Length of a part of a gradient beside that of the rest: |part| / (|part| + |whole - part|).

    None is 0. NaN where there is no gradient at all.
    """
    own = [torch.zeros(()) if p is None else p for p in part]
    rest = [-p if w is None else w - p for p, w in zip(own, whole, strict=True)]
    lengths = [float(torch.stack([x.norm() for x in xs]).norm()) for xs in (own, rest)]
    return lengths[0] / sum(lengths) if sum(lengths) > 0 else float("nan")
