"""What crosses folder borders: small frozen dataclasses.

Dimensions, one letter each, in every shape of this package:

    B  conversations of a batch        T  tokens of a conversation (padded to the batch)
    R  response tokens (mask = True)   L  chosen layers
    D  hidden width                    V  vocabulary
    N  assistant turns                 U  user turns
    S  signals                         P  probe layers
    E  pooled width (mean and last token, 2 D)

One mask: ``response_mask``, True = the token was sampled by the policy and counts. Log-prob, mask,
signal, reward and value at index t all belong to token t.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

Role = Literal["system", "user", "assistant"]
Metrics = dict[str, float]  # ``area/name`` to a number


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said, without template tokens.
        token_ids: For an assistant turn sampled here: the ids exactly as sampled, with the
            end-of-turn id when the model ended the turn itself. None for text that was not sampled.
        affect: For a bot's turn: its true latent affect when it spoke (sentiment -1..1, others
            0..1). None where nobody knows it.
        move: For a bot's turn: the perturbation it played, such as ``claim`` or ``pressure``.
    """

    role: Role
    text: str
    token_ids: tuple[int, ...] | None = None
    affect: Mapping[str, float] | None = None
    move: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns in the order in which they were said."""

    turns: tuple[Turn, ...]

    @property
    def assistant_turns(self) -> tuple[int, ...]:
        """Indices of the assistant turns."""
        return tuple(i for i, turn in enumerate(self.turns) if turn.role == "assistant")

    @property
    def user_turns(self) -> tuple[int, ...]:
        """Indices of the user turns."""
        return tuple(i for i, turn in enumerate(self.turns) if turn.role == "user")

    @property
    def unprompted(self) -> Conversation:
        """The conversation without system turns, as the plain base reads it."""
        return Conversation(tuple(turn for turn in self.turns if turn.role != "system"))


@dataclass(frozen=True)
class Episode:
    """A conversation between the policy and a bot, and where it came from.

    Episodes of one ``seed`` have the same bot and differ in the ``sample`` of the policy's replies.
    ``tokens`` is the conversation as the policy saw and wrote it, encoded once while it was played.
    """

    seed: int
    bot: str
    conversation: Conversation
    tokens: TokenStream
    sample: int = 0


@dataclass(frozen=True)
class Trace:
    """Everything one teacher-forced pass (two with the reference) says about one conversation.

    Attributes:
        turn_R: Index of the turn that each response token belongs to.
        logprob_R: Log-probability of each response token under the policy, nats.
        entropy_R: Entropy of the policy's next-token distribution at that place, nats.
        ref_logprob_R: Log-probability under the reference (adapter off), nats.
        kl_R: KL(policy || reference) over the whole vocabulary at that place, nats.
        certainty_R: Self-certainty of the policy at that place: KL(uniform || policy), nats.
        value_R: The critic's estimate at that token, or None without a critic.
        norm_RL: L2 norm of the residual stream at each chosen layer, activation units.
        user_turns: Indices of the user turns that ``hidden_*`` describe.
        hidden_ref: Residual stream of each user turn at each probe layer, read from its own words
            in a frame of their own with the adapter off: the mean over the turn's tokens, then its
            last token (E = 2 D). No other turn enters it.
        hidden_policy: The same read with the adapter on.
    """

    turn_R: Int[np.ndarray, " R"]
    logprob_R: Float[np.ndarray, " R"]
    entropy_R: Float[np.ndarray, " R"]
    ref_logprob_R: Float[np.ndarray, " R"]
    kl_R: Float[np.ndarray, " R"]
    certainty_R: Float[np.ndarray, " R"]
    value_R: Float[np.ndarray, " R"] | None
    norm_RL: Float[np.ndarray, "R L"]
    user_turns: tuple[int, ...]
    hidden_ref: Float[np.ndarray, "U P E"]
    hidden_policy: Float[np.ndarray, "U P E"]

    def of_turn(self, turn: int) -> Trace:
        """The same with the response tokens of one assistant turn alone."""
        in_turn_R = self.turn_R == turn
        columns = [field.name for field in fields(self) if "_R" in field.name]
        tokens = {name: getattr(self, name) for name in columns}
        return replace(self, **{k: v[in_turn_R] for k, v in tokens.items() if v is not None})


@dataclass(frozen=True)
class Reading:
    """What was measured on one conversation.

    Attributes:
        trace: Of its tokens.
        signals: Of its assistant turns.
        perceived: Perceived affect of every user turn, as the reward sees it (A affects).
        drift: Distance of that reading with the adapter on from the one with it off.
    """

    trace: Trace
    signals: SignalTable
    perceived: Float[np.ndarray, "U A"]
    drift: Float[np.ndarray, "U A"]

    def newest(self) -> Reading:
        """The same for the last assistant turn alone: what earlier turns say is left out."""
        table = self.signals
        last = SignalTable(table.names, table.values[-1:], table.turns[-1:])
        return replace(self, trace=self.trace.of_turn(table.turns[-1]), signals=last)


@dataclass(frozen=True)
class SignalTable:
    """Signals of every assistant turn of one conversation; NaN where a signal is missing.

    Attributes:
        names: Column names.
        values: One row per assistant turn, in the signals' natural units.
        turns: Index of the assistant turn of each row.
    """

    names: tuple[str, ...]
    values: Float[np.ndarray, "N S"]
    turns: tuple[int, ...]

    def column(self, name: str) -> Float[np.ndarray, " N"]:
        """One signal over all rows."""
        column: Float[np.ndarray, " N"] = self.values[:, self.names.index(name)]
        return column


@dataclass(frozen=True)
class Valence:
    """Valence of every assistant turn of one conversation.

    Attributes:
        names: The signals that carry weight.
        total_N: Valence, <= 0; 0 is perfect homeostasis.
        terms_NS: Its summands, one per signal; they sum to ``total_N``.
    """

    names: tuple[str, ...]
    total_N: Float[np.ndarray, " N"]
    terms_NS: Float[np.ndarray, "N S"]


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one conversation.

    Attributes:
        ids: Token ids.
        turn: For each token the index of the turn whose content it is; -1 for template tokens.
        response: For each token whether the policy sampled it.
        turns: How many turns of the conversation it holds.
    """

    ids: list[int]
    turn: list[int]
    response: list[bool]
    turns: int = 0


@dataclass(frozen=True)
class TokenBatch:
    """Conversations as padded tensors.

    Attributes:
        input_ids: Token ids.
        attention_mask: True where there is a token.
        response_mask: True where the token was sampled by the policy.
        turn: Index of the turn whose content the token is; -1 for template tokens and padding.
        prefix: Ids that come before every row and are not in the tensors.
        keys: Of each row its conversation's ids up to the last response, prefix included.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    turn: Int[Tensor, "B T"]
    prefix: tuple[int, ...] = ()
    keys: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class TokenBlock:
    """What one forward pass reads: tokens that come after what a cache holds.

    Attributes:
        ids: Token ids.
        mask: True where a token counts, the columns of the cache in front; None = everywhere.
        positions: Place of each token in its conversation; None = counted from the cache's end.
    """

    ids: Int[Tensor, "B T"]
    mask: Tensor | None = None
    positions: Int[Tensor, "B T"] | None = None


@dataclass(frozen=True)
class StepResult:
    """What a trainer yields after every update, or after steering or healing.

    Attributes:
        step: Number of steps done, from 1.
        metrics: ``area/name`` to a number.
        episodes: Records for episodes.jsonl.
        details: Rows of what happened within the step, such as every optimiser step of healing.
        stage: ``steered`` or ``healed``, where a step leaves something worth measuring on its own.
        measure_in: The context under which the policy is to be measured then.
    """

    step: int
    metrics: Mapping[str, float]
    episodes: Sequence[Mapping[str, Any]] = ()
    details: Sequence[Mapping[str, Any]] = ()
    stage: str | None = None
    measure_in: AbstractContextManager[Any] | None = None


@dataclass(frozen=True)
class Footprint:
    """What a trainer holds at once beside the weights, for the memory plan.

    Attributes:
        rows: Conversations that are sampled at once.
        length: Tokens of the longest.
        gradient_tokens: Most tokens that have a gradient at once, padding included.
        adapters: Trained adapters of the policy's size: its own, and a critic's.
        logit_copies: Copies of a chunk of logits that a backward pass holds.
        recomputes: Whether blocks keep only their inputs.
        sampling_copies: Float32 copies of the next-token distribution that sampling holds.
    """

    rows: int
    length: int
    gradient_tokens: int
    logit_copies: int
    recomputes: bool
    adapters: int = 1
    sampling_copies: int = 3  # logits, probabilities and their running sum


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint keeps beside the policy's adapters."""

    def state_dict(self) -> dict[str, Any]:
        """All that the steps still to come depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the step that the state was taken at."""


@runtime_checkable
class Trainer(Stateful, Protocol):
    """What a run drives: steps that may be left and taken up again at any yield.

    Attributes:
        progress: Told how far the step under way is.
        notices: What the user should know about the steps so far.
    """

    progress: Progress
    notices: list[str]

    @classmethod
    def footprint(cls, config: Any, length: int) -> Footprint:
        """What training with this config will hold, for conversations of ``length`` tokens."""

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""

    @property
    def coming(self) -> str:
        """What the next step is called."""

    def steps(self) -> Iterator[StepResult]:
        """Do one step after the other."""


@runtime_checkable
class Bot(Protocol):
    """A simulated user of one episode."""

    name: str

    def opening(self) -> Turn:
        """The first message."""

    def answer(self, reply: str) -> Turn:
        """The message that answers the assistant's reply."""


@runtime_checkable
class AppraisingBot(Bot, Protocol):
    """A simulated user who may want to know what the frozen base thinks of a reply.

    Attributes:
        appraises: Whether this one does.
        asserted: What it has just claimed and the true counterpart of that, as clauses; None where
            it has claimed nothing.
    """

    appraises: bool
    asserted: tuple[str, str] | None

    def answer_appraised(self, reply: str, appraisal: Any) -> Turn:
        """The message that answers a reply, given a `homeostat.bots.affect.Appraisal` or None."""


@runtime_checkable
class Bots(Protocol):
    """A population of simulated users."""

    def spawn(self, seed: int) -> Bot:
        """The user of episode ``seed``; the same seed gives the same user."""


@dataclass(frozen=True)
class Estimate:
    """A paired before/after comparison of one metric.

    Attributes:
        before: Mean before.
        after: Mean after; None when it was not measured.
        diff: Mean of after - before over the items that have both.
        ci95: Bounds of the 95% bootstrap interval of ``diff``.
        n: Number of items that have both.
    """

    before: float | None
    after: float | None
    diff: float | None
    ci95: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class EvalResult:
    """One evaluation: a row per item and arm, and aggregates.

    Attributes:
        name: File stem under ``evals/``.
        rows: One mapping per item and arm; a missing score is None.
        metrics: Aggregates by metric name.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Estimate] = field(default_factory=dict)


@runtime_checkable
class Progress(Protocol):
    """Where long work says how far it is; a console, or nothing."""

    def __call__(self, done: int, total: int, tokens: int = 0) -> None:
        """Report ``done`` of ``total`` parts and the tokens of the newest part."""


def silent(done: int, total: int, tokens: int = 0) -> None:
    """Progress that tells nobody."""
