"""Conversations as token streams, exactly as the policy saw and wrote them.

A conversation is never rendered and tokenised as a whole: a reply that is decoded and tokenised
again may come back as other ids, and a merge across the border between prompt and reply would shift
the mask. Instead the template is rendered with placeholders, cut at them, every piece is tokenised
on its own, and sampled replies are put in as the ids that were sampled. The stream of a longer
conversation therefore always begins with the stream of the shorter one, whatever the template does
to older turns, and a KV cache can live over a whole episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from homeostat.models.template import ChatTemplate
from homeostat.types import Conversation, TokenBatch, TokenStream, Turn


def encode(
    conversation: Conversation,
    template: ChatTemplate,
    eos_ids: Sequence[int],
    begun: TokenStream | None = None,
) -> TokenStream:
    """The token stream of a conversation; after a user turn it ends with the prompt for a reply.

    Assistant turns with ``token_ids`` count as responses; those without were written by somebody
    else and do not.

    Args:
        conversation: Any number of turns.
        template: Of the model.
        eos_ids: Ids that end a reply.
        begun: The stream of the first turns of this very conversation, which is not changed; only
            the turns after them are rendered and tokenised.
    """
    turns, begun = conversation.turns, begun or TokenStream([], [], [])
    stream = TokenStream([*begun.ids], [*begun.turn], [*begun.response], len(turns))
    for index in range(begun.turns, len(turns)):
        turn = turns[index]
        if turn.role == "assistant":
            sampled = turn.token_ids is not None
            ids = list(turn.token_ids or ()) if sampled else template.content_ids(turn.text)
            _extend(stream, ids, index, sampled)
        elif turn.role == "user":
            _extend_to_reply(stream, turns[: index + 1], template, eos_ids)
    return stream


def until_last_response(stream: TokenStream) -> TokenStream:
    """The stream without the tokens after its last response, on which no prediction rests."""
    end = _end_of_responses(stream)
    return TokenStream(stream.ids[:end], stream.turn[:end], stream.response[:end])


def _end_of_responses(stream: TokenStream) -> int:
    """Where the last response ends; the stream's own end without one."""
    return len(stream.response) - (stream.response[::-1].index(True) if any(stream.response) else 0)


def pad(
    streams: Sequence[TokenStream],
    pad_id: int,
    device: torch.device,
    side: str = "right",
    shared: int = 0,
) -> TokenBatch:
    """Token streams as one batch.

    Args:
        streams: At least one.
        pad_id: Fills the shorter rows; always masked.
        device: Where the tensors lie.
        side: Where the padding goes, ``left`` or ``right``.
        shared: How many tokens all streams begin with; they become ``prefix``.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side={side} of the padding is unknown; choose left or right.")
    width = max(len(stream.ids) for stream in streams) - shared

    def tensor(rows: list[list[Any]], fill: Any) -> torch.Tensor:
        gaps = [[fill] * (width - len(row)) for row in rows]
        padded = [
            gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)
        ]
        return torch.tensor(padded, device=device)

    return TokenBatch(
        input_ids=tensor([s.ids[shared:] for s in streams], pad_id),
        attention_mask=tensor([[True] * len(s.ids[shared:]) for s in streams], False),
        response_mask=tensor([s.response[shared:] for s in streams], False),
        turn=tensor([s.turn[shared:] for s in streams], -1),
        prefix=tuple(streams[0].ids[:shared]),
        keys=tuple(tuple(s.ids[: _end_of_responses(s)]) for s in streams),
    )


def _extend(stream: TokenStream, ids: list[int], turn: int, response: bool) -> None:
    stream.ids.extend(ids)
    stream.turn.extend([turn] * len(ids))
    stream.response.extend([response] * len(ids))


def _extend_to_reply(
    stream: TokenStream, turns: Sequence[Turn], template: ChatTemplate, eos_ids: Sequence[int]
) -> None:
    """Add the last turn, a user's, with system turns right before it, and the reply's prompt."""
    pieces = template.pieces([turn.role for turn in turns])
    first = len(turns) - 1
    while first > 0 and turns[first - 1].role == "system":
        first -= 1
    for index in range(first, len(turns)):
        before = template.template_ids(pieces[index])
        _extend(stream, _without_repeated_end(stream, before, eos_ids), -1, False)
        owner = index if turns[index].role == "user" else -1
        _extend(stream, template.content_ids(template.content(turns[index])), owner, False)
    _extend(stream, template.template_ids(pieces[-1]), -1, False)


def _without_repeated_end(stream: TokenStream, ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """Template ids, less the end-of-turn token where the policy has sampled that token itself."""
    ended = bool(stream.ids) and stream.response[-1] and stream.ids[-1] in eos_ids
    return ids[1:] if ended and ids and ids[0] == stream.ids[-1] else ids
