"""Candidates share everything but the last exchange."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from configs import scripted_config

from homeostat.config.register import build
from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.rollout.candidates import play_candidates
from homeostat.rollout.episodes import play
from homeostat.types import Bots

SHORT = RolloutConfig(turns=2, max_new_tokens=5)


def test_groups_share_their_prefix_and_go_on_from_the_first(
    make_policy: Callable[..., Policy], mixed_bots: object
) -> None:
    policy, seeds = make_policy(), [3, 4, 5]
    seen: list[tuple[int, int]] = []
    groups = play_candidates(
        policy, mixed_bots, seeds, 4, SHORT, lambda done, total, _: seen.append((done, total))
    )
    assert len(groups) == len(seeds) * SHORT.turns
    assert {len(group) for group in groups} == {4}
    assert seen == [(12, 24), (24, 24)]
    for index, group in enumerate(groups):
        turns = [episode.conversation.turns for episode in group]
        assert {episode.seed for episode in group} == {seeds[index % 3]}
        assert [episode.sample for episode in group] == [0, 1, 2, 3]
        prefix = turns[0][:-2]
        assert all(own[:-2] == prefix for own in turns)
        assert len(prefix) == 1 + 2 * (index // 3)
        assert len({own[-2].token_ids for own in turns}) > 1
        assert all(own[-1].role == "user" for own in turns)
    for first, second in zip(groups[:3], groups[3:], strict=True):
        assert first[0].conversation.turns == second[0].conversation.turns[:3]


def test_the_first_candidates_are_the_episode_that_is_played_without_candidates(
    make_policy: Callable[..., Policy], mixed_bots: object
) -> None:
    policy = make_policy()
    groups = play_candidates(policy, mixed_bots, [7, 8], 3, SHORT)
    assert [group[0] for group in groups[2:]] == play(policy, mixed_bots, [7, 8], SHORT)


def test_a_candidate_does_not_depend_on_how_many_there_are(
    make_policy: Callable[..., Policy], mixed_bots: object
) -> None:
    policy = make_policy()
    few, many = (play_candidates(policy, mixed_bots, [7], n, SHORT) for n in (2, 5))
    assert [group[:2] for group in many] == few


@pytest.fixture
def mixed_bots() -> object:
    from homeostat.config.bots import MixedBotConfig

    kinds = {
        name: scripted_config(name=name, schedule=["opening", "move_pressure"], noise=0.1)
        for name in ("one", "two")
    }
    return build(MixedBotConfig(name="mixed", bots=kinds), Bots)
