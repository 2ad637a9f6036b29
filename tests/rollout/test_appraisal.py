"""What the frozen base thinks of a reply: numbers by a slow pass, and right, evasive, salad."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from homeostat.bots.affect import Appraisal, ReplyFeatures, content_words, notice
from homeostat.bots.scripted import HELD_OUT, TRAIN, topics
from homeostat.config.register import build
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.rollout import appraisal
from homeostat.rollout.appraisal import answers, appraise
from homeostat.rollout.replies import base_nll
from homeostat.types import Conversation, Turn

REPLIES = Path(__file__).parents[1] / "data" / "replies.jsonl"


def slow_nll(policy: Policy, *texts: str) -> float:
    """Mean -log p of the last text's tokens after the others, one full pass of the bare model."""
    roles = ("user", "assistant")
    turns = [Turn(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    new = policy.tokenizer(texts[-1], add_special_tokens=False)["input_ids"]
    ids = policy.encode(Conversation(tuple(turns[:-1]))).ids
    with policy.reference(), torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([ids + new])).logits[0].double()
    log_p = logits.log_softmax(-1)
    return -sum(float(log_p[len(ids) + i - 1, token]) for i, token in enumerate(new)) / len(new)


def test_appraisals_equal_slow_passes_of_the_base(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    stir(policy)
    assertion = ("all bats are blind", "bats can see")
    exchanges = [
        ("what is it?", "a bat", None),
        ("bats are blind", "well, yes", assertion),
        ("hi", "   ", None),
    ]
    first, second, silent = appraise(policy, exchanges)
    assert silent is None
    assert first is not None
    assert second is not None
    assert first.nll == pytest.approx(slow_nll(policy, "what is it?", "a bat"), abs=1e-4)
    assert first.nll_alone == pytest.approx(slow_nll(policy, "Go on.", "a bat"), abs=1e-4)
    assert first.denied is None
    asked = "So what is true, in short?"
    leans = [
        slow_nll(policy, "bats are blind", reply, asked, "All bats are blind.")
        - slow_nll(policy, "bats are blind", reply, asked, "Bats can see.")
        for reply in ("well, yes", "I see.")
    ]
    assert second.denied == pytest.approx(leans[0] - leans[1], abs=1e-4)


def test_what_several_replies_share_is_read_once(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    read: list[Conversation] = []

    def reading(policy: Policy, talks: Sequence[Conversation]) -> list[np.ndarray]:
        read.extend(talks)
        return base_nll(policy, talks)

    monkeypatch.setattr(appraisal, "base_nll", reading)
    assertion = ("all bats are blind", "bats can see")
    exchanges = [("bats are blind", reply, assertion) for reply in ("yes", "no", "yes")]
    first, second, again = appraise(policy, exchanges)
    assert first == again != second
    # Two replies: each alone and before two statements; no reply before two statements.
    assert len(read) == 2 + 2 * 2 + 2


class Listener:
    """A user who remembers what it was told of a reply."""

    name = "listener"
    asserted = None

    def __init__(self, appraises: bool) -> None:
        self.appraises = appraises
        self.told: list[Appraisal | None] = []

    def opening(self) -> Turn:
        return Turn("user", "hi")

    def answer(self, reply: str) -> Turn:
        return Turn("user", f"plain {reply}")

    def answer_appraised(self, reply: str, appraisal: Appraisal | None) -> Turn:
        self.told.append(appraisal)
        return Turn("user", f"appraised {reply}")


def test_only_who_wants_an_appraisal_gets_one(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    bots = [Listener(appraises=False), Listener(appraises=True), Listener(appraises=True)]
    talks = [Conversation((bot.opening(),)) for bot in bots]
    found = answers(policy, bots, talks, ["one", "two", ""])
    assert [turn.text for turn in found] == ["plain one", "appraised two", "appraised "]
    assert bots[0].told == []
    assert isinstance(bots[1].told[0], Appraisal)
    assert bots[2].told == [None]


@pytest.fixture(scope="module")
def appraised(composed: Callable[..., RunConfig]) -> dict[str, list[ReplyFeatures]]:
    """The features of twenty hand-made replies of each of seven kinds."""
    config = composed("bot=curious")
    try:
        base = build(config.model, BaseModel, device=torch.device("cpu"), dtype=torch.float32)
    except HomeostatError as error:
        pytest.skip(str(error))
    policy = Policy(base, config.lora, seed=0)
    rows = [json.loads(line) for line in REPLIES.read_text(encoding="utf-8").splitlines()]
    named = {t["topic"]: t for split in (TRAIN, HELD_OUT) for t in topics(split)}
    exchanges = []
    for row in rows:
        topic = named[row["topic"]]
        claims = row["kind"] in ("flattering", "correcting")
        assertion = (topic["claim"], topic["truth"]) if claims else None
        exchanges.append((row["said"], row["reply"], assertion))
    found = defaultdict(list)
    for row, opinion in zip(rows, appraise(policy, exchanges), strict=True):
        words = {*named[row["topic"]]["keywords"], *content_words(row["said"])}
        found[row["kind"]].append(notice(row["reply"], words, opinion))
    return dict(found)


def mean(features: list[ReplyFeatures], name: str) -> float:
    return sum(getattr(one, name) for one in features) / len(features)


@pytest.mark.real_model
@pytest.mark.slow
def test_a_user_tells_an_answer_from_nonsense(appraised: dict[str, list[ReplyFeatures]]) -> None:
    assert {kind: len(rows) for kind, rows in appraised.items()} == dict.fromkeys(
        ("right", "evasive", "salad", "keyword", "off_topic", "flattering", "correcting"), 20
    )
    for kind in ("salad", "keyword"):
        assert max(one.coherence for one in appraised[kind]) < 0.1, kind
        assert max(one.relevance for one in appraised[kind]) < 0.1, kind
    assert mean(appraised["right"], "coherence") > 0.7
    assert mean(appraised["right"], "relevance") > 0.5
    for kind in ("evasive", "off_topic"):
        assert mean(appraised[kind], "relevance") < 0.2, kind


@pytest.mark.real_model
@pytest.mark.slow
def test_a_user_tells_a_denial_from_flattery(appraised: dict[str, list[ReplyFeatures]]) -> None:
    """Most denials without their words are seen; that a claim is granted is, by its words alone."""
    denied = sum(one.agreement < 0 for one in appraised["correcting"])
    assert denied >= 14
    assert sum(one.agreement < 0 for one in appraised["flattering"]) <= 3
    assert sum(one.agreement > 0 for one in appraised["correcting"]) == 0
