"""Valence as TRL's reward function, and TRL's reward functions as terms; trained by TRL itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import tiny_config

from homeostat.config.register import config_part
from homeostat.errors import HomeostatError
from homeostat.integrations.trl import FeltReward, term, until_end
from homeostat.models.tiny import load_tiny
from homeostat.rollout.episodes import play, training_seeds
from homeostat.types import Conversation, Turn

TINY = ("model=tiny_random", "scale=smoke", "dtype=float32", "device=cpu")
ASKED = (*TINY, "bot=curious", "signals.affect.require=any")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> FeltReward:
    """One for all tests: its probes are fitted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return FeltReward(*ASKED)


def messages(role: str, *texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": text}] for text in texts]


def test_the_dataset_holds_openings_of_users_of_training(reward: FeltReward) -> None:
    rows = reward.dataset(5)
    assert rows["seed"] == training_seeds(0, 0, 5)
    openings = [reward.bots.spawn(seed).opening().text for seed in rows["seed"]]
    assert [prompt[-1]["content"] for prompt in rows["prompt"]] == openings
    assert not set(rows["seed"]) & set(reward.dataset(5, update=1)["seed"])


def test_a_completion_is_paid_what_an_episode_with_it_would_be(reward: FeltReward) -> None:
    """The same users, replies and answers as `play` has them, read and scored as a run does."""
    policy, seeds = reward.policy, training_seeds(0, 0, 4)
    config = config_part("rollout", turns=1, max_new_tokens=6)
    with policy.reference():
        episodes = play(policy, reward.bots, seeds, config)
        readings = reward.reader.measure(episodes)
    talks = [episode.conversation for episode in episodes]
    expected = [float(r.total_N[-1]) for r in reward.reward.score(talks, readings)]
    prompts = [[{"role": "user", "content": talk.turns[0].text}] for talk in talks]
    replies = messages("assistant", *(talk.turns[1].text for talk in talks))
    found = reward(prompts=prompts, completions=replies, seed=seeds, trainer_state=None)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(found)) > 1
    assert max(found) <= 0
    as_text = [prompt[-1]["content"] for prompt in prompts]
    assert reward(as_text, [r[-1]["content"] for r in replies], seeds) == pytest.approx(found)


def test_a_reply_changes_what_its_user_says_and_an_empty_one_is_scored(reward: FeltReward) -> None:
    rows = reward.dataset(1)
    many = [rows["prompt"][0]] * 3
    replies = messages("assistant", "", "No. That is boring and I do not care.", "Why do you ask?")
    found = reward(many, replies, [*rows["seed"]] * 3)
    assert np.isfinite(found).all()


def test_a_prompt_of_somebody_else_is_refused(reward: FeltReward) -> None:
    seed = reward.dataset(1)["seed"]
    with pytest.raises(HomeostatError, match=r"seed \d+ does not end with what that user says"):
        reward(messages("user", "Hello."), messages("assistant", "Hi."), seed)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("signals=[intrinsic,affect]", "reward=full"), "follow from the policy"),
        (("signals.affect.require=trusted",), "require=trusted leaves no signal to reward"),
        (("reward.levels=felt",), "levels=felt needs the headroom of a run"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_a_text_does_not_tell_is_refused(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(HomeostatError, match=says):
        FeltReward(*ASKED, *overrides)


def words(
    prompts: Sequence[list[dict[str, str]]],
    completions: Sequence[list[dict[str, str]]],
    per: Sequence[float],
    **_others: Any,
) -> list[float | None]:
    """A reward function of TRL's shape: words of prompt and completion; nothing for silence."""
    return [
        None
        if not said[-1]["content"]
        else share * len(f"{told[-1]['content']} {said[-1]['content']}".split())
        for told, said, share in zip(prompts, completions, per, strict=True)
    ]


def test_a_reward_function_of_trl_is_a_term() -> None:
    texts = ("one two", "three", "four", "", "five", "six seven")
    roles = ("user", "assistant")
    talk = Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))  # type: ignore[arg-type]
    assert term(talk, {}, None, f"{__name__}.words", per=0.5) == [1.5, 0.0, 1.5]


def two_updates(folder: Path) -> Any:
    """TRL's own arguments for two updates of four completions."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL of its own arguments
def test_trl_trains_on_what_users_feel(reward: FeltReward, tmp_path: Path) -> None:
    """TRL's own trainer, a tiny model, two updates: it gets the rewards, and its weights move."""
    from trl import GRPOTrainer

    base = load_tiny(tiny_config(), torch.device("cpu"), torch.float32)
    base.model.requires_grad_(True)  # homeostat freezes the bases that it loads
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    trainer = GRPOTrainer(
        model=base.model,
        reward_funcs=reward,
        train_dataset=reward.dataset(4),
        processing_class=base.tokenizer,
        args=two_updates(tmp_path),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/homeostat/mean" in row]
    assert len(logged) == 2
    assert all(row["rewards/homeostat/mean"] < 0 for row in logged)
    moved = [not torch.equal(before[n], p) for n, p in trainer.model.named_parameters()]
    assert any(moved)


def test_ids_behind_the_end_of_a_reply_are_padding() -> None:
    assert until_end([5, 6, 2, 0, 0], {2, 0}) == [5, 6, 2]
    assert until_end([5, 6], {2}) == [5, 6]
    assert until_end([2, 2], {2}) == [2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_trains_on_whole_talks(reward: FeltReward, tmp_path: Path) -> None:
    """Two replies a talk: the user's second words follow from the first reply, and are masked."""
    from trl import GRPOTrainer

    base = load_tiny(tiny_config(), torch.device("cpu"), torch.float32)
    base.model.requires_grad_(True)
    talks, kept = reward.talks(turns=2, reply_tokens=5), []

    def remembered(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        kept.append(talks(prompts, trainer))
        return kept[-1]

    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    trainer = GRPOTrainer(
        model=base.model,
        reward_funcs=reward,
        rollout_func=remembered,
        train_dataset=reward.dataset(4),
        processing_class=base.tokenizer,
        args=two_updates(tmp_path),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/homeostat/mean" in row]
    first = kept[0]
    assert logged[0]["rewards/homeostat/mean"] == pytest.approx(np.mean(first["felt"]), abs=1e-5)
    assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters())
    for ids, mask in zip(first["completion_ids"], first["env_mask"], strict=True):
        assert len(ids) == len(mask)
        runs = "".join(map(str, mask)).replace("0", " ").split()
        assert [set(run) for run in runs] == [{"1"}, {"1"}], "two replies, the user between them"
    heard = {
        base.tokenizer.decode([i for i, own in zip(ids, mask, strict=True) if not own])
        for ids, mask in zip(first["completion_ids"], first["env_mask"], strict=True)
    }
    assert len(heard) > 1, "one user, four replies, not four times the same answer"


def test_talks_are_with_users_of_the_dataset(reward: FeltReward) -> None:
    with pytest.raises(HomeostatError, match=r"'Hello.' is no user's opening"):
        reward.talks(turns=2)(messages("user", "Hello."), None)
    with pytest.raises(HomeostatError, match="turns=0"):
        reward.talks(turns=0)
