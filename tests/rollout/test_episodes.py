"""Whole episodes: who speaks when, what is sampled, and that only the seed matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from configs import scripted_config

from homeostat.bots.scripted import MixedBots
from homeostat.config.bots import MixedBotConfig
from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.rollout import episodes, generate
from homeostat.rollout.appraisal import answers
from homeostat.rollout.episodes import (
    calibration_seeds,
    held_out_seeds,
    play,
    training_seeds,
    uniforms,
    validation_seeds,
)
from homeostat.rollout.generate import Sampler
from homeostat.types import Conversation, Episode

ROLLOUT = RolloutConfig(turns=2, max_new_tokens=5)
SEEDS = [3, 4, 500_000, 1_000_017, 6]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What is made once for all tests of this file; none of them changes it."""
    return {}


@pytest.fixture
def policy(
    made: dict[str, Any], make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> Policy:
    """A policy whose adapter matters."""
    if "policy" not in made:
        made["policy"] = make_policy()
        stir(made["policy"])
    return cast(Policy, made["policy"])


@pytest.fixture(scope="module")
def bots() -> MixedBots:
    """Two kinds of users, moved by what they are told."""
    gains = {"boredom": {"relevance": -0.5, "coherence": -0.5}}
    one = scripted_config(
        name="one", initial={"boredom": 0.5}, gains=gains, schedule=["opening", "move_deepen"]
    )
    two = replace(one, name="two", schedule=["move_claim", "move_pressure"])
    return MixedBots(MixedBotConfig(name="both", bots={"one": one, "two": two}))


@pytest.fixture
def played(made: dict[str, Any], policy: Policy, bots: MixedBots) -> list[Episode]:
    """Five episodes, played together."""
    if "played" not in made:
        made["played"] = play(policy, bots, SEEDS, ROLLOUT)
    return cast(list[Episode], made["played"])


def slow_reply(
    policy: Policy, conversation: Conversation, numbers: np.ndarray, temperature: float
) -> list[int]:
    """The reply without cache or batch: a full pass for every token."""
    ids, reply = policy.encode(conversation).ids, []
    for number in numbers.tolist():
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([ids + reply])).logits[0, -1]
        total = 0.0
        probabilities = (logits.double() / temperature).softmax(-1).tolist()
        for token, probability in enumerate(probabilities):
            total += probability
            if total > number:
                reply.append(token)
                break
        if reply[-1] in policy.eos_ids:
            break
    return reply


# --- seeds --------------------------------------------------------------------------------------


def test_seed_ranges_are_disjoint() -> None:
    ranges = [held_out_seeds(2000), calibration_seeds(2000), validation_seeds(2000)]
    ranges += [training_seeds(s, u, 64) for s in (0, 1, 2, 999) for u in (0, 1, 2, 50, 999)]
    together = [seed for part in ranges for seed in part]
    assert len(together) == 3 * 2000 + 20 * 64
    assert len(set(together)) == len(together)


def test_fixed_seeds_are_the_same_whatever_their_count() -> None:
    assert held_out_seeds(8)[:4] == held_out_seeds(4)
    assert calibration_seeds(8)[:4] == calibration_seeds(4)
    assert validation_seeds(8)[:4] == validation_seeds(4)


def test_updates_follow_each_other_without_a_gap() -> None:
    first, second = training_seeds(3, 0, 16), training_seeds(3, 1, 16)
    assert [*first, *second] == list(range(first[0], first[0] + 32))


def test_uniforms_follow_from_seed_and_turn() -> None:
    found = uniforms(5, 1, 40)
    assert found.tolist() == uniforms(5, 1, 40).tolist()
    assert ((found >= 0) & (found < 1)).all()
    assert not set(found.tolist()) & set(uniforms(5, 2, 40).tolist())
    assert not set(found.tolist()) & set(uniforms(6, 1, 40).tolist())
    assert uniforms(5, 1, 10).tolist() == found[:10].tolist()


def test_samples_of_a_seed_have_numbers_of_their_own() -> None:
    plain = uniforms(5, 1, 40)
    assert uniforms(5, 1, 40, sample=0).tolist() == plain.tolist()
    assert plain.tolist() == np.random.default_rng([5, 1]).random(40).tolist()
    together = [x for sample in range(4) for x in uniforms(5, 1, 40, sample).tolist()]
    assert len(set(together)) == 160


# --- who speaks ---------------------------------------------------------------------------------


def test_every_episode_begins_and_ends_with_a_user_turn(played: list[Episode]) -> None:
    assert [episode.seed for episode in played] == SEEDS
    for episode in played:
        roles = [turn.role for turn in episode.conversation.turns]
        assert roles == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize("turns", [1, 3])
def test_the_number_of_turns_is_that_of_the_assistant(
    policy: Policy, bots: MixedBots, turns: int
) -> None:
    config = RolloutConfig(turns=turns, max_new_tokens=3)
    (episode,) = play(policy, bots, [1], config)
    assert len(episode.conversation.assistant_turns) == turns
    assert len(episode.conversation.user_turns) == turns + 1


def test_users_speak_as_their_bot_would(
    played: list[Episode], bots: MixedBots, policy: Policy
) -> None:
    """With what the base thinks of each reply, whatever the batch it was asked about in."""
    for episode in played:
        bot = bots.spawn(episode.seed)
        said = [bot.opening()]
        turns = episode.conversation.turns
        for i in episode.conversation.assistant_turns:
            talk = Conversation(turns[:i])
            said += answers(policy, [bot], [talk], [turns[i].text])
        assert [turns[i] for i in episode.conversation.user_turns] == said
        assert episode.bot == bot.name == ("one", "two")[episode.seed % 2]


def test_token_ids_decode_to_the_text(policy: Policy, played: list[Episode]) -> None:
    for episode in played:
        for i in episode.conversation.assistant_turns:
            turn = episode.conversation.turns[i]
            assert turn.token_ids is not None
            assert 1 <= len(turn.token_ids) <= ROLLOUT.max_new_tokens
            special = policy.tokenizer.all_special_ids
            plain = [token for token in turn.token_ids if token not in special]
            assert turn.text == policy.tokenizer.decode(plain).strip()
            assert all(token not in policy.eos_ids for token in turn.token_ids[:-1])


def test_user_turns_were_not_sampled(played: list[Episode]) -> None:
    for episode in played:
        for i in episode.conversation.user_turns:
            assert episode.conversation.turns[i].token_ids is None


# --- what is sampled ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_replies_equal_a_slow_loop(policy: Policy, bots: MixedBots, temperature: float) -> None:
    config = RolloutConfig(turns=3, max_new_tokens=4)
    for episode in play(policy, bots, [2, 7], config, temperature):
        turns = episode.conversation.turns
        for number, i in enumerate(episode.conversation.assistant_turns):
            expected = slow_reply(
                policy, Conversation(turns[:i]), uniforms(episode.seed, number, 4), temperature
            )
            assert list(turns[i].token_ids or ()) == expected


def test_the_same_seed_gives_the_same_episode_in_any_batch(
    policy: Policy, bots: MixedBots, played: list[Episode]
) -> None:
    for seed, episode in zip(SEEDS, played, strict=True):
        assert play(policy, bots, [seed], ROLLOUT) == [episode]


def test_the_same_seed_gives_the_same_episode_when_batches_are_smaller(
    policy: Policy, bots: MixedBots, played: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "BATCH", 2)
    assert play(policy, bots, SEEDS, ROLLOUT) == played


def test_the_order_of_seeds_does_not_matter(
    policy: Policy, bots: MixedBots, played: list[Episode]
) -> None:
    assert play(policy, bots, SEEDS[::-1], ROLLOUT) == played[::-1]


def test_reading_the_common_template_once_changes_no_episode(
    policy: Policy,
    bots: MixedBots,
    played: list[Episode],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "WORTH_SHARING", 1)
    read: list[int] = []
    forward = Sampler._forward

    def counted(self: Sampler, tokens: torch.Tensor, *rest: Any) -> None:
        read.append(len(tokens))
        forward(self, tokens, *rest)

    monkeypatch.setattr(Sampler, "_forward", counted)
    assert play(policy, bots, SEEDS, ROLLOUT) == played
    assert (read[0], set(read[1:])) == (1, {len(SEEDS)})
    monkeypatch.setattr(generate, "can_share", lambda _policy: False)
    read.clear()
    assert play(policy, bots, SEEDS, ROLLOUT) == played
    assert set(read) == {len(SEEDS)}


def test_different_seeds_give_different_replies(played: list[Episode]) -> None:
    replies = {episode.conversation.turns[1].token_ids for episode in played}
    assert len(replies) == len(SEEDS)


def test_the_episode_depends_on_the_adapter(
    make_policy: Callable[..., Policy], policy: Policy, bots: MixedBots, played: list[Episode]
) -> None:
    with policy.reference():
        reference = play(policy, bots, SEEDS, ROLLOUT)
    assert reference == play(make_policy(), bots, SEEDS, ROLLOUT)
    assert reference != played


def test_progress_counts_replies_and_tokens(
    policy: Policy, bots: MixedBots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "BATCH", 2)
    seen: list[tuple[int, int, int]] = []

    def progress(done: int, total: int, tokens: int = 0) -> None:
        seen.append((done, total, tokens))

    found = play(policy, bots, SEEDS, ROLLOUT, progress=progress)
    assert [done for done, _, _ in seen] == [2, 4, 6, 8, 9, 10]
    assert {total for _, total, _ in seen} == {10}
    sampled = sum(
        len(turn.token_ids or ()) for episode in found for turn in episode.conversation.turns
    )
    assert sum(tokens for _, _, tokens in seen) == sampled


def test_samples_of_a_seed_share_the_bot_and_not_the_replies(
    policy: Policy, bots: MixedBots, played: list[Episode]
) -> None:
    found = play(policy, bots, [3, 6, 3, 3, 6], ROLLOUT)
    found.sort(key=lambda episode: episode.seed)
    assert [(e.seed, e.sample) for e in found] == [(3, 0), (3, 1), (3, 2), (6, 0), (6, 1)]
    assert found[0] == played[0]
    assert len({e.conversation.turns[0].text for e in found[:3]}) == 1
    assert len({e.conversation.turns[1].token_ids for e in found}) == 5
    assert play(policy, bots, [6, 6], ROLLOUT) == found[3:]


def test_no_seeds_no_episodes(policy: Policy, bots: MixedBots) -> None:
    assert play(policy, bots, [], ROLLOUT) == []


# --- a system turn ------------------------------------------------------------------------------


def test_what_a_policy_is_told_stands_in_front_of_the_opening(
    policy: Policy, bots: MixedBots, played: list[Episode]
) -> None:
    told = play(policy, bots, SEEDS, ROLLOUT, system="Be calm.")
    for one, plain in zip(told, played, strict=True):
        first, *rest = one.conversation.turns
        assert (first.role, first.text) == ("system", "Be calm.")
        assert rest[0] == plain.conversation.turns[0]
        assert one.tokens == policy.encode(one.conversation)
        numbers = uniforms(one.seed, 0, ROLLOUT.max_new_tokens)
        begun = Conversation((first, rest[0]))
        assert list(rest[1].token_ids or ()) == slow_reply(policy, begun, numbers, 1.0)
    assert [one.conversation.unprompted for one in told] != [one.conversation for one in played]
