"""The loop on the tiny model: rounds, doses, starving, and state that continues it exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from configs import (
    barrier_config,
    dose_config,
    filter_config,
    heal_config,
    stages_config,
    steer_heal_config,
    vector_config,
)

from homeostat.config.persona import PersonaConfig, ProbePair
from homeostat.config.steering import SteerHealConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapter_files import load_adapter, save_adapter
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import with_sampled_replies
from homeostat.steering.bank import COMPLETION, Bank
from homeostat.steering.loop import SteerHeal
from homeostat.steering.vectors import as_message, as_persona
from homeostat.timing import Stopwatch

PERSONA = PersonaConfig(
    name="calm",
    positive="someone who breathes slowly and answers softly",
    negative="someone who panics quickly and answers loudly",
    probe_pairs=[ProbePair("q", "a", "b"), ProbePair("q", "c", "d")],
    diary="How are you?",
)
# A random model says nothing that words could be judged by.
OPEN = filter_config(
    max_perplexity=None,
    max_tail_perplexity=None,
    min_perplexity=None,
    max_repetition=None,
    min_distinct=None,
    min_diversity=None,
    min_tokens=1,
    narration=False,
    refusal=False,
)
CONFIG = steer_heal_config(
    lr=1e-2,
    max_steps=2,
    batch_size=8,
    max_new_tokens=6,
    vector=vector_config(contexts=8),
    dose=dose_config(kind="grid", values=[1.0, 4.0]),
    filter=OPEN,
    heal=heal_config(epochs=1, validation=0.25),
    barrier=barrier_config(tau=0.0),
    stages=stages_config(contexts=4, vignettes=0),
)


@pytest.fixture
def make(make_policy: Callable[..., Policy]) -> Callable[..., SteerHeal]:
    def build(
        config: SteerHealConfig = CONFIG, seed: int = 0, persona: PersonaConfig = PERSONA
    ) -> SteerHeal:
        return SteerHeal(
            config, policy=make_policy(), persona=persona, seed=seed, watch=Stopwatch()
        )

    return build


def adapters(policy: Policy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if ".lora_" in n}


def test_every_round_steers_then_heals(make: Callable[..., SteerHeal]) -> None:
    trainer = make()
    found = [(r.stage, r.metrics, list(r.episodes)) for r in trainer.steps()]
    assert [stage for stage, _, _ in found] == ["steered", "healed"] * 2
    assert trainer.policy.rounds == ["default", "round_2"]
    steered, healed = found[0], found[1]
    assert steered[1]["steer/completions"] == 8
    assert steered[1]["steer/cosine_to_first"] == pytest.approx(1)
    assert {row["dose"] for row in steered[2]} == {1.0, 4.0}
    assert healed[1]["heal/fired"] == 1, "tau is 0"
    assert found[2][1]["steer/cosine_to_first"] < 0.999999
    assert -1 <= healed[1]["heal/shift_cosine"] <= 1
    assert healed[1]["heal/shift_dose"] != 0
    assert trainer.is_over


def test_the_steered_stage_is_measured_while_steered(make: Callable[..., SteerHeal]) -> None:
    results = make().steps()
    first = next(results)
    assert first.measure_in is not None
    second = next(results)
    assert second.measure_in is None


def test_healing_moves_one_round_and_leaves_the_others(make: Callable[..., SteerHeal]) -> None:
    trainer = make()
    steps = trainer.steps()
    next(steps)
    next(steps)
    first = adapters(trainer.policy)
    next(steps)
    next(steps)
    after = adapters(trainer.policy)
    assert all(torch.equal(after[name], weight) for name, weight in first.items())
    fresh = [name for name in after if ".round_2." in name and "lora_B" in name]
    assert any(float(after[name].abs().max()) > 0 for name in fresh)


def assert_continues(make: Callable[[], Any], folder: Any, done: int) -> list[dict[str, float]]:
    """A trainer that is stopped and taken up again goes on as one that is not; its metrics."""
    whole, stopped, resumed = make(), make(), make()
    expected = [dict(result.metrics) for result in whole.steps()]
    steps = stopped.steps()
    for _ in range(done):
        next(steps)
    save_adapter(stopped.policy, folder / "adapter")
    torch.save(stopped.state_dict(), folder / "state.pt")
    load_adapter(resumed.policy, folder / "adapter")
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    found = [dict(result.metrics) for result in resumed.steps()]
    for own, wanted in zip(found, expected[done:], strict=True):
        assert own == pytest.approx(wanted, nan_ok=True)
    own, wanted = adapters(resumed.policy), adapters(whole.policy)
    assert all(torch.equal(own[name], weight) for name, weight in wanted.items())
    return expected


@pytest.mark.parametrize("done", [1, 2, 3])
def test_state_continues_the_loop_exactly(
    make: Callable[..., SteerHeal], tmp_path: Any, done: int
) -> None:
    assert_continues(make, tmp_path, done)


def test_arms_share_their_first_completions(make: Callable[..., SteerHeal]) -> None:
    texts = []
    for barrier in (barrier_config(divergence="none"), barrier_config(aggregate="max", tau=0.1)):
        first = next(make(replace(CONFIG, barrier=barrier)).steps())
        texts.append([row["text"] for row in first.episodes])
    assert texts[0] == texts[1]
    other = next(make(seed=1).steps())
    assert [row["text"] for row in other.episodes] != texts[0]


def test_a_filter_that_passes_nothing_starves_the_run(make: Callable[..., SteerHeal]) -> None:
    trainer = make(replace(CONFIG, filter=replace(OPEN, min_tokens=100)))
    results = list(trainer.steps())
    assert [result.stage for result in results] == ["steered"]
    assert trainer.starved is not None
    assert "0 of 8 completions passed the filter" in trainer.starved
    assert "By gate: short 8." in trainer.starved
    assert trainer.is_over


def test_survival_searches_below_what_fails(
    make: Callable[..., SteerHeal], monkeypatch: pytest.MonkeyPatch
) -> None:
    dose = dose_config(kind="survival", low=1.0, high=16.0, probes=2, probe_size=4)
    trainer = make(replace(CONFIG, dose=dose))
    judged = "homeostat.steering.bank.failed_gates"
    monkeypatch.setattr(judged, lambda c, *_: () if c.dose <= 5 else ("perplexity",))
    first = next(trainer.steps())
    # The middle of 1 and 16 is 4, that of 4 and 16 is 8, which fails.
    assert [row["dose"] for row in first.episodes][:8] == pytest.approx([4.0] * 4 + [8.0] * 4)
    assert first.metrics["steer/dose"] == pytest.approx(4.0)
    assert first.metrics["steer/kept"] == len(first.episodes) - 4, "survivors of probes are kept"


def test_iso_kl_comes_near_its_target(make: Callable[..., SteerHeal]) -> None:
    dose = dose_config(kind="iso_kl", low=0.1, high=100.0, probes=5, probe_size=4, target_kl=0.05)
    trainer = make(replace(CONFIG, dose=dose))
    next(trainer.steps())
    assert trainer.vector is not None
    assert trainer.base_perplexity is not None
    found, higher = (
        Bank(trainer.source, 0, trainer.vector, trainer.base_perplexity).kl_at(dose)
        for dose in (trainer.dose, 4 * trainer.dose)
    )
    assert found < higher
    assert 0.01 < found < 0.25


def test_backtracking_cuts_and_halves_the_dose(
    make: Callable[..., SteerHeal], monkeypatch: pytest.MonkeyPatch
) -> None:
    dose = dose_config(kind="grid", values=[4.0], backtracks=1)
    monkeypatch.setattr("homeostat.steering.bank.last_good_position", lambda *_: 2)
    monkeypatch.setattr(
        "homeostat.steering.bank.failed_gates", lambda c, *_: () if c.dose < 4 else ("tail",)
    )
    plain_run = next(make(replace(CONFIG, dose=replace(dose, backtracks=0))).steps())
    assert plain_run.metrics["steer/kept"] == 0
    trainer = make(replace(CONFIG, dose=dose))
    found = next(trainer.steps())
    assert {row["dose"] for row in found.episodes} == {2.0}
    assert found.metrics["steer/kept"] == 8
    assert all(len(completion.ids) <= CONFIG.max_new_tokens for completion in trainer.kept)


def test_tau_is_read_off_a_pilot_once(make: Callable[..., SteerHeal]) -> None:
    barrier = barrier_config(tau="quantile", firing_rate=0.5)
    trainer = make(replace(CONFIG, barrier=barrier))
    healed = [r.metrics for r in trainer.steps() if r.stage == "healed"]
    assert trainer.tau is not None
    assert [metrics["heal/tau"] for metrics in healed] == [trainer.tau] * 2


def test_tau_that_follows_the_firing_is_handed_on(make: Callable[..., SteerHeal]) -> None:
    barrier = barrier_config(tau=0.01, control="rate", firing_rate=0.5, rate_lr=0.2)
    trainer = make(replace(CONFIG, barrier=barrier))
    details = [list(r.details) for r in trainer.steps() if r.stage == "healed"]
    assert trainer.tau is not None
    tau = 0.01
    for row in (row for rows in details for row in rows):
        assert row["tau"] == pytest.approx(tau)
        tau *= 2.718281828 ** (0.2 * (row["fired"] - 0.5))
    assert trainer.tau == pytest.approx(tau)


def test_completions_are_spread_over_shares_of_the_dose_that_was_found(
    make: Callable[..., SteerHeal], monkeypatch: pytest.MonkeyPatch
) -> None:
    dose = dose_config(
        kind="survival", low=1.0, high=16.0, probes=1, probe_size=4, shares=[0.5, 1.0, -0.25]
    )
    monkeypatch.setattr("homeostat.steering.bank.failed_gates", lambda *_: ())
    first = next(make(replace(CONFIG, dose=dose)).steps())
    doses = [row["dose"] for row in first.episodes]
    assert doses == pytest.approx([4.0] * 4 + [2.0, 4.0, -1.0, 2.0])
    assert first.metrics["steer/dose"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("target", "batches", "sampled", "kept"),
    [(None, 9, 8, 4), (3, 9, 8, 3), (10, 9, 24, 10), (10, 2, 16, 8)],
)
def test_batches_are_topped_up_until_the_target_is_kept(
    make: Callable[..., SteerHeal],
    monkeypatch: pytest.MonkeyPatch,
    target: int | None,
    batches: int,
    sampled: int,
    kept: int,
) -> None:
    """Half of the completions pass: those of one of two doses."""
    monkeypatch.setattr(
        "homeostat.steering.bank.failed_gates", lambda c, *_: () if c.dose < 2 else ("tail",)
    )
    trainer = make(replace(CONFIG, target=target, most_batches=batches))
    first = next(trainer.steps())
    assert (first.metrics["steer/completions"], len(trainer.kept)) == (sampled, kept)
    assert trainer.starved is None


def test_too_little_of_a_target_starves(
    make: Callable[..., SteerHeal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "homeostat.steering.bank.failed_gates", lambda c, *_: () if c.dose < 2 else ("tail",)
    )
    trainer = make(replace(CONFIG, target=40, most_batches=2))
    list(trainer.steps())
    assert trainer.starved is not None
    assert "8 of 16 completions passed" in trainer.starved
    assert "trainer.target=40" in trainer.starved


def test_the_persona_s_prompts_are_steered_on_and_measure_nothing(
    make: Callable[..., SteerHeal],
) -> None:
    prompts = [f"What would you do in case number {number}?" for number in range(8)]
    persona = replace(PERSONA, prompts=prompts)
    trainer = make(replace(CONFIG, asked="persona"), persona=persona)
    first = next(trainer.steps())
    assert {row["prompt"] for row in first.episodes} == set(prompts)
    assert len(trainer.read_from) >= CONFIG.vector.contexts
    assert not {context.text for context in trainer.held_out} & set(prompts)
    with pytest.raises(HomeostatError, match=r"persona calm has 3 prompts.*8 at least"):
        make(replace(CONFIG, asked="persona"), persona=replace(PERSONA, prompts=prompts[:3]))


def test_a_frame_is_sampled_under_and_left_away_in_healing(make: Callable[..., SteerHeal]) -> None:
    plain, framed = make(), make(persona=replace(PERSONA, frame="Speak softly."))
    rows = [next(trainer.steps()).episodes for trainer in (plain, framed)]
    assert [row["prompt"] for row in rows[0]] == [row["prompt"] for row in rows[1]]
    assert [row["text"] for row in rows[0]] != [row["text"] for row in rows[1]]
    prompts = [{one.prompt for one in trainer.kept} for trainer in (plain, framed)]
    assert prompts[0] == prompts[1]


def test_a_prompted_teacher_is_told_and_not_steered(make: Callable[..., SteerHeal]) -> None:
    trainer = make(replace(CONFIG, teacher="prompted"))
    first = next(trainer.steps())
    assert {row["dose"] for row in first.episodes} == {0.0}
    assert first.metrics["steer/dose"] == 0
    assert first.measure_in is None, "the wing tells it instead"
    asked = [as_persona(PERSONA, "positive", row["prompt"]) for row in first.episodes]
    sampling = trainer.source.sampling(COMPLETION, 0)
    said = with_sampled_replies(trainer.policy, asked, sampling)
    assert [row["text"] for row in first.episodes] == [talk.turns[-1].text for talk in said]
    plain = [tuple(trainer.policy.encode(as_message(row["prompt"])).ids) for row in first.episodes]
    assert [one.prompt for one in trainer.kept] == plain


def stirred(trainer: SteerHeal) -> None:
    for parameter in trainer.policy.adapter_parameters():
        torch.nn.init.normal_(parameter, std=0.1)


def test_a_round_that_is_not_good_is_dropped(make: Callable[..., SteerHeal]) -> None:
    trainer = make(replace(CONFIG, adopt="good", max_steps=3, good=0.9))
    steps, shares = trainer.steps(), [1.0, 0.5, 0.95]
    policy, kept = trainer.policy, []
    for share in shares:
        next(steps)
        next(steps)
        stirred(trainer)
        kept.append(trainer.judge(share, 1.0))
        if share == 1.0:
            after_first = adapters(policy)
    assert kept == [True, False, True]
    # The third round has learnt in the place of the second.
    assert policy.rounds == ["default", "round_2"]
    assert trainer.good_rounds == 2
    now = adapters(policy)
    assert all(torch.equal(now[name], weight) for name, weight in after_first.items())


def test_after_a_dropped_round_the_student_is_the_last_good_one(
    make: Callable[..., SteerHeal],
) -> None:
    trainer = make(replace(CONFIG, adopt="good"))
    steps = trainer.steps()
    next(steps)
    next(steps)
    stirred(trainer)
    assert not trainer.judge(0.0, 1.0)
    assert all(not bool(w.any()) for n, w in adapters(trainer.policy).items() if "lora_B" in n)
    assert trainer.policy.rounds == ["default"]
    assert trainer.good_rounds == 0


def test_unknown_coherence_is_not_good(make: Callable[..., SteerHeal]) -> None:
    trainer = make()
    for shares in ((None, 1.0), (1.0, None)):
        assert trainer.judge(*shares), "all rounds are adopted"
        assert trainer.good_rounds == 0
    assert trainer.judge(0.99, 1.0)
    assert trainer.good_rounds == 1


@pytest.mark.parametrize(
    ("reference", "expected"), [("base", [0, 0, 0]), ("prev", [0, 1, 2]), ("last_good", [0, 1, 1])]
)
def test_what_a_round_is_held_to(
    make: Callable[..., SteerHeal],
    monkeypatch: pytest.MonkeyPatch,
    reference: str,
    expected: list[int],
) -> None:
    """The first round is good, the second is not, and both are adopted."""
    seen: list[int] = []
    as_of = Policy.as_of
    monkeypatch.setattr(Policy, "as_of", lambda self, n: (seen.append(n), as_of(self, n))[1])
    barrier = barrier_config(reference=reference, tau=0.0)
    trainer = make(replace(CONFIG, barrier=barrier, max_steps=3))
    shares = iter([1.0, 0.5, 1.0])
    for result in trainer.steps():
        if result.stage == "healed":
            trainer.judge(next(shares), 1.0)
    assert seen == expected


def test_too_few_contexts_are_refused(make: Callable[..., SteerHeal]) -> None:
    config = replace(CONFIG, vector=vector_config(contexts=312))
    with pytest.raises(HomeostatError, match=r"320 contexts are too few.*vector\.contexts=312"):
        make(config)
