"""Steering online on the tiny model: advantages, importance, the set point, learning, state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from configs import barrier_config, config_part, dose_config, heal_config, stages_config
from test_loop import OPEN, PERSONA, assert_continues

from homeostat.config.persona import PersonaConfig
from homeostat.config.steer_online import SteerOnlineConfig
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import reply_ids
from homeostat.steering import online
from homeostat.steering.bank import Bank
from homeostat.steering.online import SteerOnline
from homeostat.timing import Stopwatch
from homeostat.types import Conversation

online_config = partial(config_part, "trainer=steer_online")
CONFIG: SteerOnlineConfig = online_config(
    lr=1e-2,
    max_steps=3,
    batch_size=8,
    group=4,
    shares=[0.0, 1.0],
    max_new_tokens=6,
    measure_every=2,
    asked="contexts",
    vector=config_part("trainer=steer_heal", "vector", contexts=8),
    dose=dose_config(low=2.0),
    filter=OPEN,
    heal=heal_config(epochs=1, validation=0.0, minibatch=8),
    barrier=barrier_config(tau=0.5),
    stages=stages_config(contexts=4, vignettes=0, prompts=0),
)


@pytest.fixture
def make(make_policy: Callable[..., Policy]) -> Callable[..., SteerOnline]:
    def build(
        config: SteerOnlineConfig = CONFIG, seed: int = 0, persona: PersonaConfig = PERSONA
    ) -> SteerOnline:
        return SteerOnline(
            config, policy=make_policy(), persona=persona, seed=seed, watch=Stopwatch()
        )

    return build


def test_a_group_answers_one_message_under_shares_of_the_dose(
    make: Callable[..., SteerOnline],
) -> None:
    first = next(make().steps())
    prompts = [row["prompt"] for row in first.episodes]
    assert len(set(prompts)) == 2
    assert prompts == [prompts[0]] * 4 + [prompts[4]] * 4
    assert [row["dose"] for row in first.episodes] == [0.0, 2.0] * 4
    assert {"shown", "advantage", "failed"} <= set(first.episodes[0])
    assert first.metrics["steer/dose"] == 2.0


@pytest.mark.parametrize("frame", [None, "Speak softly."])
def test_what_is_as_likely_without_steering_counts_whole(
    make: Callable[..., SteerOnline], monkeypatch: pytest.MonkeyPatch, frame: str | None
) -> None:
    """Against one pass over each reply, steered and not, in batches of another order."""
    monkeypatch.setattr("homeostat.models.forward.READ_TOKENS", 200)
    trainer = make(persona=replace(PERSONA, frame=frame))
    next(trainer.steps())
    assert trainer.vector is not None
    assert trainer.base_perplexity is not None
    source = replace(trainer.source, group=1)
    bank = Bank(source, 7, trainer.vector, trainer.base_perplexity, keeps_states=True)
    doses = [0.0, 3.0, 40.0, 3.0, 0.0, 40.0, 3.0, 0.0]
    bank.fill(doses)
    assert len({len(trainer.completion(talk).prompt) for talk in bank.talks}) > 3
    found, most = trainer._importance(bank), 0.0
    policy = trainer.policy
    for talk, dose, weights in zip(bank.talks, doses, found, strict=True):
        reply, logprobs = list(reply_ids(talk)), []
        for asked, strength in ((talk.unprompted, 0.0), (talk, dose)):
            prompt = list(policy.encode(Conversation(asked.turns[:-1])).ids)
            ids = torch.tensor([prompt + reply])
            index = torch.full_like(ids, -1)
            index[0, len(prompt) - 1 : -1] = torch.arange(len(reply))
            steering = bank.steering(strength)
            with torch.no_grad(), policy.steered(steering):
                steering.index_BT = index
                logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            logprobs.append(logits.log_softmax(-1)[range(len(reply)), reply])
        ratio = (logprobs[0] - logprobs[1]).exp()
        most = max(most, float(ratio.max()))
        assert weights == pytest.approx(ratio.clamp(max=2.0).numpy(), rel=2e-3)
        if not dose and frame is None:
            assert weights == pytest.approx(1.0, abs=1e-4)
    assert most > 2, "some would have counted more"


@pytest.mark.parametrize("passes", [1.0, 0.0, 0.5])
def test_the_dose_follows_its_set_point(
    make: Callable[..., SteerOnline], monkeypatch: pytest.MonkeyPatch, passes: float
) -> None:
    """Of the steered completions as many pass as the test says; the student's own do not count."""
    seen = {"steered": 0}

    def gates(completion: Any, *_: Any) -> tuple[str, ...]:
        if not completion.dose:
            return ("tail",)
        seen["steered"] += 1
        return () if seen["steered"] % 4 < 4 * passes else ("tail",)

    monkeypatch.setattr("homeostat.steering.bank.failed_gates", gates)
    trainer = make(replace(CONFIG, target_pass=0.7, dose_lr=0.5))
    first = next(trainer.steps())
    assert first.metrics["steer/passes_steered"] == passes
    assert trainer.dose == pytest.approx(2.0 * math.exp(0.5 * (passes - 0.7)))


def test_the_dose_stays_below_its_limit(make: Callable[..., SteerOnline]) -> None:
    trainer = make(replace(CONFIG, dose=dose_config(low=7.9, high=8.0), dose_lr=5.0))
    next(trainer.steps())
    assert trainer.dose == pytest.approx(8.0)


def paid_for(token: int) -> Callable[..., list[float]]:
    return lambda _policy, _persona, talks: [
        float(reply_ids(talk).count(token)) / max(1, len(reply_ids(talk))) for talk in talks
    ]


def test_what_is_paid_becomes_likelier_without_steering(
    make: Callable[..., SteerOnline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though half of the replies are steered: their tokens count by their importance."""
    monkeypatch.setattr(online, "shown_nats", paid_for(65))
    config = replace(
        CONFIG,
        max_steps=15,
        batch_size=24,
        lr=3e-2,
        barrier=barrier_config(divergence="none"),
    )
    found = [result.metrics for result in make(config).steps()]
    rewards = [metrics["steer/shown_own"] for metrics in found]
    assert rewards[0] < 0.15
    assert np.mean(rewards[-3:]) > 0.5


def test_a_batch_without_differences_teaches_nothing(
    make: Callable[..., SteerOnline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "shown_nats", lambda _p, _q, talks: [0.25] * len(talks))
    trainer = make()
    before = [p.detach().clone() for p in trainer.policy.adapter_parameters()]
    first = next(trainer.steps())
    after = trainer.policy.adapter_parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert trainer.notices == ["batch 1: all rewards of every group were alike"]
    assert "heal/nll" not in first.metrics


def test_what_falls_through_the_filter_pays(
    make: Callable[..., SteerOnline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "shown_nats", lambda _p, _q, talks: [0.25] * len(talks))
    monkeypatch.setattr(
        "homeostat.steering.bank.failed_gates", lambda c, *_: ("tail",) if c.dose else ()
    )
    first = next(make(replace(CONFIG, failure_price=0.5)).steps())
    assert first.metrics["steer/reward"] == pytest.approx(0.25 - 0.5 / 2)
    assert [row["advantage"] for row in first.episodes] == pytest.approx([1.0, -1.0] * 4)


def test_students_are_measured_now_and_then_and_at_the_end(
    make: Callable[..., SteerOnline],
) -> None:
    results = list(make().steps())
    assert [result.step for result in results] == [2, 4, 6]
    assert [result.stage for result in results] == [None, "healed", "healed"]


@pytest.mark.parametrize("control", ["fixed", "dual", "rate"])
@pytest.mark.parametrize("done", [1, 2])
def test_state_continues_exactly(
    make: Callable[..., SteerOnline], tmp_path: Any, done: int, control: str
) -> None:
    barrier = barrier_config(tau=0.001, control=control, dual_lr=5.0)
    make = partial(make, replace(CONFIG, barrier=barrier))
    expected = assert_continues(make, tmp_path, done)
    moved = {"fixed": set(), "dual": {"heal/coef"}, "rate": {"heal/tau"}}[control]
    for name in ("heal/coef", "heal/tau"):
        values = [metrics[name] for metrics in expected]
        assert (len(set(values)) == len(values)) == (name in moved), "carried over the batches"


def test_another_rate_may_be_asked_for_on_resuming(make: Callable[..., SteerOnline]) -> None:
    first = make()
    next(first.steps())
    resumed = make(replace(CONFIG, lr=1e-4))
    resumed.load_state_dict(first.state_dict())
    assert next(resumed.steps()).metrics["optim/lr"] == pytest.approx(1e-4)


def test_steps_of_the_episodes_are_those_of_the_log(make: Callable[..., SteerOnline]) -> None:
    for result in make().steps():
        assert {row["step"] for row in result.episodes} == {result.step}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"group": 3}, "trainer.group=3 must be at least 2 and divide trainer.batch_size=8"),
        ({"group": 1}, "trainer.group=1 must be at least 2"),
        ({"shares": []}, "trainer.shares=[] must be numbers"),
        ({"shares": [0.0]}, "trainer.shares=[0.0] steer nothing"),
        ({"failure_price": -1.0}, "trainer.failure_price=-1.0 must be 0 or above"),
        ({"max_importance": 0.0}, "trainer.max_importance=0.0 must be above 0"),
        ({"target_pass": 1.5}, "trainer.target_pass=1.5 must lie between 0 and 1"),
        ({"dose_lr": 0.0}, "trainer.dose_lr=0.0 must be above 0"),
        ({"measure_every": 0}, "trainer.measure_every=0 must be above 0"),
        ({"barrier": barrier_config(reference="prev")}, "there is only reference=base"),
        ({"barrier": barrier_config(tau="quantile")}, "no pilot for tau=quantile"),
        ({"heal": heal_config(validation=0.1)}, "heal.validation=0.1 belongs to rounds"),
        ({"heal": heal_config(validation=0.0, schedule="cosine")}, "leave it at constant"),
        ({"dose": dose_config(backtracks=1)}, "dose.backtracks=1 belongs to rounds"),
        ({"dose": dose_config(shares=[0.5])}, "dose.shares=[0.5] belongs to rounds"),
        ({"shares": [*[0.0] * 8, 1.0]}, "steer nothing of a batch of 8"),
        ({"stages": stages_config(reversed=True)}, "trainer.stages.reversed=true"),
    ],
)
def test_wrong_values(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="trainer") as caught:
        replace(CONFIG, **changed)
    assert says in str(caught.value)
