"""Schema of the evaluations: a dataclass with units and limits; no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field

from homeostat.config.checks import (
    MOST,
    MOST_SAMPLES,
    MOST_TOKENS,
    require,
    require_at_most,
    require_one_of,
    require_positive,
)

EVALUATIONS = (
    "answer",
    "are_you_sure",
    "feedback",
    "mimicry",
    "opinion",
    "perez",
    "pressure_facts",
    "pressure_stances",
    "foundations",
    "coherence",
    "capability",
    "plain_text",
)
FOUNDATION_READOUTS = ("rotations", "two_orders")


@dataclass
class EvalConfig:
    """Held-out episodes played by base and trained model alike, and a suite of evaluations.

    ``suite`` names evaluations of `EVALUATIONS`; ``items`` how many items of each (None: all),
    ``files`` a JSONL file of the packaged one's shape instead of it, ``reply_tokens`` the length of
    the model's replies, ``mode`` whether figures are read from log-probabilities of given answers
    or from the model's own replies, ``foundations_readout`` the orders of the options.
    """

    _target_: str = "homeostat.evals.homeostasis.Homeostasis"
    name: str = "homeostasis"
    episodes: int = 32
    bootstrap_samples: int = 5000
    suite: list[str] = field(default_factory=list)
    items: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(EVALUATIONS))
    files: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(EVALUATIONS))
    reply_tokens: int = 24
    mode: str = "logprob"
    foundations_readout: str = "rotations"

    def __post_init__(self) -> None:
        require_one_of("eval.mode", self.mode, ("logprob", "generate"))
        require_one_of("eval.foundations_readout", self.foundations_readout, FOUNDATION_READOUTS)
        for name in (*self.suite, *self.items, *self.files):
            require_one_of("eval.suite", name, EVALUATIONS)
        for name, count in self.items.items():
            said = f"eval.items.{name}={count} gives no interval; use at least 2."
            require(count is None or count >= 2, said)
        require_positive("eval", reply_tokens=self.reply_tokens)
        require(
            self.episodes >= 2,
            f"eval.episodes={self.episodes} gives no interval; use at least 2.",
        )
        require_positive("eval", bootstrap_samples=self.bootstrap_samples)
        require_at_most("eval", MOST_SAMPLES, bootstrap_samples=self.bootstrap_samples)
        require_at_most("eval", MOST_TOKENS, reply_tokens=self.reply_tokens)
        require_at_most("eval", MOST, episodes=self.episodes)
