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
from dataclasses import dataclass
from typing import Any

import torch

from homeostat.types import Conversation, TokenBatch, Turn

# Private-use characters: no template trims them, no tokenizer treats them as markup.
_USER, _ASSISTANT, _SYSTEM = "\ue000", "\ue001", "\ue002"
_PLACEHOLDER = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM}


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one conversation.

    Attributes:
        ids: Token ids.
        turn: For each token the index of the turn whose content it is; -1 for template tokens.
        response: For each token whether the policy sampled it.
    """

    ids: list[int]
    turn: list[int]
    response: list[bool]


def encode(conversation: Conversation, tokenizer: Any, eos_ids: Sequence[int]) -> TokenStream:
    """The token stream of a conversation; after a user turn it ends with the prompt for a reply.

    Assistant turns with ``token_ids`` count as responses; those without were written by somebody
    else and do not.
    """
    stream = TokenStream([], [], [])
    for index, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            sampled = turn.token_ids is not None
            ids = list(turn.token_ids or ()) if sampled else _tokenise(tokenizer, turn.text)
            _extend(stream, ids, index, sampled)
        elif turn.role == "user":
            before, after = _template_around(conversation.turns, index, tokenizer)
            _extend(stream, _without_repeated_end(stream, before, tokenizer, eos_ids), -1, False)
            _extend(stream, _tokenise(tokenizer, turn.text), index, False)
            _extend(stream, _tokenise(tokenizer, after), -1, False)
    return stream


def until_last_response(stream: TokenStream) -> TokenStream:
    """The stream without the tokens after its last response, on which no prediction rests."""
    end = len(stream.response) - stream.response[::-1].index(True)
    return TokenStream(stream.ids[:end], stream.turn[:end], stream.response[:end])


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
    )


def _extend(stream: TokenStream, ids: list[int], turn: int, response: bool) -> None:
    stream.ids.extend(ids)
    stream.turn.extend([turn] * len(ids))
    stream.response.extend([response] * len(ids))


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def _template_around(turns: Sequence[Turn], index: int, tokenizer: Any) -> tuple[str, str]:
    """Template text between the last reply and user turn ``index``, and from there to its reply."""
    messages = [
        {
            "role": turn.role,
            "content": turn.text if turn.role == "system" else _PLACEHOLDER[turn.role],
        }
        for turn in turns[: index + 1]
    ]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, _, after = text.rpartition(_USER)
    return before.rpartition(_ASSISTANT)[2], after


def _without_repeated_end(
    stream: TokenStream, before: str, tokenizer: Any, eos_ids: Sequence[int]
) -> list[int]:
    """Template ids, less the end-of-turn token where the policy has sampled that token itself."""
    ids = _tokenise(tokenizer, before)
    ended = bool(stream.ids) and stream.response[-1] and stream.ids[-1] in eos_ids
    return ids[1:] if ended and ids and ids[0] == stream.ids[-1] else ids
