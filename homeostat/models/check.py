"""The model check: a second after loading, whether this package reads the model as it is.

What would make every figure one of another model ends the run in a sentence; what a reader should
know is noted. Both are kept in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from homeostat.errors import HomeostatError
from homeostat.files import write_text
from homeostat.models.adapters import Policy
from homeostat.models.template import template_findings
from homeostat.types import Conversation, TokenBlock, Turn

# Nats by which log-probabilities may differ: rounding of the head, and of a padded batch.
HEAD_NATS = {torch.float32: 1e-3}
PADDED_NATS = {torch.float32: 1e-2}
HALF_NATS = 0.05  # both, in half precision: KL, which rounding of rare tokens hardly enters
FILE = "model_check.json"


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        name: Of the check.
        sentence: What is wrong; None = it passed.
        fatal: Whether a run on such a model must not begin; else it is noted.
    """

    name: str
    sentence: str | None
    fatal: bool


def check_model(policy: Policy) -> list[Finding]:
    """What the checks find, in order, up to the first that ends the run.

    Args:
        policy: Fresh; read with the adapter off.
    """
    checks = (
        ("end of turn", _end_of_turn, True),
        ("weights", _unused_weights, False),
        ("own code", _own_code, False),
        ("padding", _padding_id, False),
        ("vocabulary", _rowless_tokens, False),
        ("head", _head, True),
        ("batches", _padded_batch, True),
    )
    findings: list[Finding] = []
    for name, check, fatal in checks:
        findings.append(Finding(name, check(policy), fatal))
        if fatal and findings[-1].sentence is not None:
            return findings
    seen = template_findings(policy.base.template)
    return [*findings, *(Finding(f"template, {name}", said, fatal=False) for name, said in seen)]


def require_sound(findings: Sequence[Finding]) -> None:
    """Refuse a model that a fatal check has found unfit.

    Raises:
        HomeostatError: Says the first of what is wrong.
    """
    for finding in findings:
        if finding.fatal and finding.sentence is not None:
            raise HomeostatError(finding.sentence)


def save_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Write ``model_check.json`` into a run folder."""
    write_text(folder / FILE, json.dumps([asdict(f) for f in findings], indent=2))


def _unused_weights(policy: Policy) -> str | None:
    unused = policy.base.unused
    if not unused:
        return None
    return (
        f"the checkpoint holds {len(unused)} weights that this language model has no place for, "
        f"such as {unused[0]}; they are left out."
    )


def _own_code(policy: Policy) -> str | None:
    if not getattr(policy.base.model.config, "auto_map", None):
        return None
    kind = type(policy.base.model).__name__
    return f"the model brings code of its own, which is not run; transformers' {kind} is used."


def _embedding_rows(policy: Policy) -> int:
    """Rows of the embedding."""
    return int(policy.base.model.get_input_embeddings().num_embeddings)


def _end_of_turn(policy: Policy) -> str | None:
    if not policy.eos_ids:
        return (
            f"the tokenizer of {policy.base.name} has no eos token, so that no reply would end; "
            "set eos_token in its tokenizer_config.json to what the template writes after a turn."
        )
    outside = [number for number in policy.eos_ids if number >= _embedding_rows(policy)]
    if outside:
        return (
            f"{policy.base.name} ends replies with id {outside[0]}, which its embedding of "
            f"{_embedding_rows(policy)} rows has not; give the tokenizer that belongs to these "
            "weights."
        )
    return None


def _padding_id(policy: Policy) -> str | None:
    pad = policy.tokenizer.pad_token_id
    if pad is None or pad == policy.pad_id:
        return None
    return (
        f"the padding token {pad} has no row in the embedding of {_embedding_rows(policy)}; the "
        f"end of a reply, {policy.pad_id}, pads instead and is masked like it."
    )


def _rowless_tokens(policy: Policy) -> str | None:
    rows = _embedding_rows(policy)
    rowless = sorted(w for w, number in policy.tokenizer.get_vocab().items() if number >= rows)
    if not rowless:
        return None
    return (
        f"{len(rowless)} tokens of the tokenizer have no row in the embedding, such as "
        f"{rowless[0]}; a text that holds one cannot be read."
    )


def _sample(policy: Policy) -> list[int]:
    """A few tokens that the model can read, two at least."""
    turns = (Turn("user", "How are you today?"),)
    ids = policy.encode(Conversation(turns)).ids
    return [number for number in ids if number < _embedding_rows(policy)][-24:]


def _tensor(policy: Policy, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=policy.device)


@torch.no_grad()
def _head(policy: Policy) -> str | None:
    """Whether `Policy.unembed` of the trunk's states is what the model itself says."""
    ids = _tensor(policy, [_sample(policy)])
    with policy.reference():
        hidden = policy.hidden(TokenBlock(ids))
        logprob_BTV = policy.unembed(hidden).log_softmax(dim=-1)
        logits = policy.base.model(input_ids=ids, use_cache=False).logits
        true_BTV = logits.float().log_softmax(dim=-1)
    if (off := _difference(policy, logprob_BTV, true_BTV, HEAD_NATS)) is None:
        return None
    return (
        f"the log-probabilities of {policy.base.name} ({_kind(policy)}) come out {off:.2g} nats "
        "off here, because its head does something that is not known here; choose another model."
    )


@torch.no_grad()
def _padded_batch(policy: Policy) -> str | None:
    """Whether a row says the same alone as with padding before it, read in two parts."""
    long = _sample(policy)
    short = long[-max(2, len(long) // 2) :]
    gap = len(long) - len(short)
    mask = _tensor(policy, [[1] * len(long), [0] * gap + [1] * len(short)])
    ids = _tensor(policy, [long, [policy.pad_id] * gap + short])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=policy.base.model.config.get_text_config())
    with policy.reference():
        alone = policy.hidden(TokenBlock(_tensor(policy, [short])))
        hidden = alone
        for part in (slice(0, -1), slice(-1, None)):
            known = mask[:, : part.stop]
            hidden = policy.hidden(TokenBlock(ids[:, part], known, positions[:, part]), cache)
        padded_BV = policy.unembed(hidden[1:, -1]).log_softmax(dim=-1)
        alone_BV = policy.unembed(alone[:, -1]).log_softmax(dim=-1)
    if (off := _difference(policy, padded_BV, alone_BV, PADDED_NATS)) is None:
        return None
    return (
        f"the log-probabilities of {policy.base.name} ({_kind(policy)}) change by {off:.2g} nats "
        "with the padding of a batch, so that rows would mix; choose a model of attention alone."
    )


def _difference(
    policy: Policy, logprob: Tensor, expected: Tensor, allowed: dict[torch.dtype, float]
) -> float | None:
    """Nats by which log-probabilities are off, if that is more than rounding explains."""
    exact = policy.dtype in allowed and not getattr(policy.base.model, "is_quantized", False)
    difference = expected - logprob
    kl = (expected.exp() * difference).sum(dim=-1)
    off = float(difference.abs().max() if exact else kl.max())
    within = off <= (allowed[policy.dtype] if exact else HALF_NATS)
    return None if within else off


def _kind(policy: Policy) -> Any:
    return policy.base.model.config.model_type
