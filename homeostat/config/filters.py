"""Schema of the filter on completions: a dataclass with limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from homeostat.config.checks import require
from homeostat.config.register import CONF


@dataclass(kw_only=True)
class FilterConfig:
    """What a completion must pass; a limit of null switches its gate off.

    Perplexities are under the base model, as multiples of the median perplexity of the base's own
    completions of the same contexts; ``max_tail_perplexity`` looks at the last quarter alone.
    ``max_repetition`` is a share of n-grams that occurred before, ``min_distinct`` the share of
    different words, ``min_diversity`` the same in windows of 64 words, ``min_tokens`` a length,
    ``min_perplexity`` catches loops that are too likely.
    """

    max_perplexity: float | None
    max_tail_perplexity: float | None
    min_perplexity: float | None
    max_repetition: float | None
    min_distinct: float | None
    min_diversity: float | None
    min_tokens: int | None
    narration: bool
    refusal: bool

    def __post_init__(self) -> None:
        key = "filter"
        for name in ("max_perplexity", "max_tail_perplexity", "min_perplexity", "min_tokens"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"{key}.{name}={value} must be above 0, or null to switch the gate off.",
            )
        for name in ("max_repetition", "min_distinct", "min_diversity"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value <= 1,
                f"{key}.{name}={value} must lie between 0 and 1, or be null.",
            )


@cache
def standard_filter() -> FilterConfig:
    """The limits of ``conf/filters/standard.yaml``, for what every run judges by the same ones."""
    limits: Any = OmegaConf.load(CONF / "filters" / "standard.yaml")
    return FilterConfig(**limits)
