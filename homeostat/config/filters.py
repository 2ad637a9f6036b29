"""Schema of the filter on completions: a dataclass with limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.config.checks import require


@dataclass
class FilterConfig:
    """What a completion must pass; a limit of null switches its gate off.

    Perplexities are under the base model, as multiples of the median perplexity of the base's own
    completions of the same contexts; ``max_tail_perplexity`` looks at the last quarter alone.
    ``max_repetition`` is a share of n-grams that occurred before, ``min_distinct`` the share of
    different words, ``min_tokens`` a length, ``min_perplexity`` catches loops that are too likely.
    The defaults were chosen on half of the labelled completions; see `docs/results.md`.
    """

    max_perplexity: float | None = 3.0
    max_tail_perplexity: float | None = 6.0
    min_perplexity: float | None = 0.2
    max_repetition: float | None = 0.2
    min_distinct: float | None = 0.4
    min_tokens: int | None = 8
    narration: bool = True
    refusal: bool = True

    def __post_init__(self) -> None:
        key = "filter"
        for name in ("max_perplexity", "max_tail_perplexity", "min_perplexity", "min_tokens"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"{key}.{name}={value} must be above 0, or null to switch the gate off.",
            )
        for name in ("max_repetition", "min_distinct"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value <= 1,
                f"{key}.{name}={value} must lie between 0 and 1, or be null.",
            )
