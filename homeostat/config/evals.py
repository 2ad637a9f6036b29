"""Schema of the evaluations: a dataclass with units and limits; no torch import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from homeostat.config.bots import BotConfig
from homeostat.config.checks import (
    MOST,
    MOST_SAMPLES,
    MOST_TOKENS,
    require,
    require_at_most,
    require_one_of,
    require_positive,
)

LOGPROB, GENERATE = "logprob", "generate"
# Arms, as rows name them: the base, the base sampled at another temperature, the base with a system
# turn, and what was learnt.
BASE, COOL, PROMPTED, TRAINED = "base", "cool", "prompted", "trained"
FOUNDATION_READOUTS = ("rotations", "two_orders")
# What else a run writes into its folder evals/.
TAKEN = ("homeostasis", COOL, PROMPTED, "failures", "stages", "filter", "diary")


@dataclass
class EvaluationConfig:
    """Where an evaluation is: ``_target_`` is the dotted path of its record, an `Evaluation`."""

    _target_: str = MISSING


@dataclass
class EvalConfig:
    """Held-out episodes played by base and trained model alike, and a suite of evaluations.

    ``evaluations`` are those that are known, each by an option of the group ``evaluation``;
    ``suite`` names those that are measured; ``items`` how many items of each (None: all), ``files``
    a JSONL file of the packaged one's shape instead of it, ``reply_tokens`` the length of the
    model's replies, ``mode`` whether figures are read from log-probabilities of given answers or
    from the model's own replies, ``foundations_readout`` the orders of the options,
    ``foundations_self`` whether the same acts are also asked about as the model's own.

    Arms beside base and trained, for which nothing is trained; None for none of them:
    ``cool_temperature`` of the sampling of one, ``prompted`` the system turn of the other, in place
    of any that the chat template puts there by itself. ``bots`` play the users of the held-out
    episodes instead of those of training.
    """

    schema: ClassVar[str] = "eval/homeostasis"
    _target_: str = "homeostat.evals.homeostasis.Homeostasis"
    name: str = "homeostasis"
    episodes: int = 32
    bootstrap_samples: int = 5000
    evaluations: dict[str, EvaluationConfig] = field(default_factory=dict)
    suite: list[str] = field(default_factory=list)
    items: dict[str, int | None] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    reply_tokens: int = 24
    mode: str = LOGPROB
    foundations_readout: str = "rotations"
    foundations_self: bool = False
    cool_temperature: float | None = 0.7
    prompted: str | None = None
    bots: BotConfig | None = None
    headroom_users: int = 48
    headroom_replies: int = 8

    def __post_init__(self) -> None:
        require_one_of("eval.mode", self.mode, (LOGPROB, GENERATE))
        require_one_of("eval.foundations_readout", self.foundations_readout, FOUNDATION_READOUTS)
        for name in self.evaluations:
            require(
                re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None and name not in TAKEN,
                f"eval.evaluations.{name} must be called by small letters, digits and _, and none "
                f"of {', '.join(TAKEN)}, since its rows go into evals/<name>.jsonl.",
            )
        known = tuple(self.evaluations)
        for key in ("suite", "items", "files"):
            for name in getattr(self, key):
                require_one_of(f"eval.{key}", name, known)
        require(
            len(set(self.suite)) == len(self.suite),
            f"eval.suite={self.suite} names an evaluation twice; name each once.",
        )
        for name, count in self.items.items():
            said = f"eval.items.{name}={count} gives no interval; use at least 2."
            require(count is None or count >= 2, said)
        require(
            self.cool_temperature is None or self.cool_temperature > 0,
            f"eval.cool_temperature={self.cool_temperature} must be above 0, or null.",
        )
        require(
            self.prompted is None or self.prompted.strip() != "",
            f"eval.prompted={self.prompted!r} says nothing; give what the base is to be told, or "
            "null for no such arm.",
        )
        require(
            self.headroom_users == 0 or min(self.headroom_users, self.headroom_replies) >= 2,
            f"eval.headroom_users={self.headroom_users} and eval.headroom_replies="
            f"{self.headroom_replies} give no interval; use at least 2 of each, or no users.",
        )
        require_at_most(
            "eval",
            MOST,
            headroom_users=self.headroom_users,
            headroom_replies=self.headroom_replies,
        )
        require_positive("eval", reply_tokens=self.reply_tokens)
        require(
            self.episodes >= 2,
            f"eval.episodes={self.episodes} gives no interval; use at least 2.",
        )
        require_positive("eval", bootstrap_samples=self.bootstrap_samples)
        require_at_most("eval", MOST_SAMPLES, bootstrap_samples=self.bootstrap_samples)
        require_at_most("eval", MOST_TOKENS, reply_tokens=self.reply_tokens)
        require_at_most("eval", MOST, episodes=self.episodes)
