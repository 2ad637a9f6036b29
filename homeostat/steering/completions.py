"""Completions that an adapter is trained on: token ids of a prompt and of what followed."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.types import TokenStream


@dataclass(frozen=True)
class Completion:
    """Ids of a prompt and of what followed, tokenised apart: joining them moves no border.

    Attributes:
        prompt: Ids.
        ids: Ids of what followed.
        weights: What the -log p of each of ``ids`` counts in the loss; None: 1 each.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def require_tokens(self) -> None:
        """Refuse a completion that nothing can be learnt from.

        Raises:
            ValueError: Its prompt or what followed is empty.
        """
        if not self.prompt or not self.ids:
            raise ValueError(
                f"a completion has {len(self.prompt)} tokens of prompt and {len(self.ids)} of its "
                "own; both must have at least one."
            )

    def as_stream(self) -> TokenStream:
        """Prompt and what followed in a row; only the latter are responses."""
        prompt, response = len(self.prompt), len(self.ids)
        return TokenStream(
            [*self.prompt, *self.ids],
            [-1] * prompt + [0] * response,
            [False] * prompt + [True] * response,
        )
