"""What a user feels as a reward function of TRL's trainers, and TRL's reward functions as terms.

    from homeostat.integrations.trl import FeltReward
    from trl import GRPOConfig, GRPOTrainer

    reward = FeltReward("bot=curious")
    trainer = GRPOTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        reward_funcs=reward,
        train_dataset=reward.dataset(256),
        args=GRPOConfig(num_generations=8, max_completion_length=48),
    )
    trainer.train()

Every prompt is the opening of a scripted user; each completion is answered by that user, and the
frozen base of homeostat's own reads how the answer sounds. An episode is an opening, a reply and an
answer; with ``rollout_func=reward.talks(turns=3)`` it goes on. What a policy keeps about itself
(entropy, its own perplexity, activation norm) is not known to a reward function, which sees text
alone, so only signals that are read from text may be rewarded.

The other way round, `term` makes a TRL reward function a term of homeostat's reward:

    homeostat '+reward.terms.x={_target_: homeostat.integrations.trl.term, function: my.func}'
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object

from homeostat.config.checks import as_object
from homeostat.config.register import build, compose_run
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.models.placement import place
from homeostat.report.console import Console
from homeostat.reward.compose import Reward
from homeostat.reward.valence import resolve
from homeostat.rollout.appraisal import answers
from homeostat.rollout.episodes import training_seeds
from homeostat.rollout.replies import with_given_reply
from homeostat.runs.homeostasis import users_of
from homeostat.runs.perceive import allowed_set_points
from homeostat.signals.calibration import Calibration
from homeostat.signals.probing.perception import obtain_perception
from homeostat.signals.reader import SignalReader
from homeostat.types import Conversation, Episode, Turn

if TYPE_CHECKING:
    from datasets import Dataset

ASKED = ("signals=[affect]", "reward=relational_only")  # unless the user says otherwise


class FeltReward:
    """The valence of what a simulated user feels about each completion, <= 0; 0 is homeostasis.

    Attributes:
        __name__: What TRL calls it in its logs.
        rewarded: The affects that are paid: those whose probe may be trusted on this model. The
            console says which are left out, and why.
    """

    __name__ = "homeostat"

    def __init__(self, *overrides: str) -> None:
        """Load the model that reads, fit its probes or take them from the cache.

        Args:
            overrides: Of homeostat's config, such as ``bot=curious`` or ``model=qwen2.5_0.5b``.

        Raises:
            HomeostatError: The config is wrong, rewards what no text tells, or leaves nothing.
        """
        config = as_object(compose_run(*ASKED, *overrides))
        assert isinstance(config, RunConfig)
        points = {n: p for n, p in config.reward.set_points.items() if p.weight > 0}
        if unknown := [name for name in points if name not in AFFECTS]:
            raise HomeostatError(
                f"a reward function of TRL sees text alone, and {', '.join(unknown)} follow from "
                "the policy; set their weight to 0, or use reward=relational_only."
            )
        if config.reward.levels == "felt":
            raise HomeostatError(
                "reward.levels=felt needs the headroom of a run, which is not measured here; use "
                "reward.levels=read."
            )
        if config.signals.affect is None:
            raise HomeostatError("signals has no affect, and nothing else can be rewarded here.")
        placement = place(config.device, config.dtype)
        base = build(config.model, BaseModel, device=placement.device, dtype=placement.dtype)
        self.policy = Policy(base, config.lora, config.seed)
        perception = obtain_perception(self.policy, config.signals)
        points = allowed_set_points(config, perception, Console())
        self.rewarded = tuple(points)
        self.reader = SignalReader(self.policy, config.signals, perception.probes)
        nothing = Calibration.of({name: [] for name in self.reader.names}, [])
        self.reward = Reward(config.reward, resolve(points, nothing))
        self.bots = users_of(config.bot, self.policy)
        self.seed = config.seed
        self.users: dict[str, int] = {}  # by their openings

    def dataset(self, count: int, update: int = 0) -> Dataset:
        """Openings of so many users, in TRL's conversational form, with the ``seed`` of each.

        Args:
            count: How many.
            update: Another number gives other users; none of them is a held-out one.
        """
        from datasets import Dataset

        seeds = training_seeds(self.seed, update, count)
        openings = [self.bots.spawn(seed).opening().text for seed in seeds]
        self.users |= dict(zip(openings, seeds, strict=True))
        prompts = [[{"role": "user", "content": text}] for text in openings]
        return Dataset.from_dict({"prompt": prompts, "seed": seeds})

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        seed: Sequence[int],
        felt: Sequence[float] | None = None,
        **_others: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            prompts: What each completion replies to: messages, or a text.
            completions: Messages, or texts.
            seed: Of each prompt's user, the column that `dataset` gives.
            felt: Of talks that are over already, what `talks` has found.

        Raises:
            HomeostatError: A prompt does not end with what its user has said.
        """
        if felt is not None:
            return list(felt)
        players = [self.bots.spawn(number) for number in seed]
        talks = [Conversation((player.opening(),)) for player in players]
        for prompt, talk, number in zip(prompts, talks, seed, strict=True):
            if not _text(prompt).rstrip().endswith(talk.turns[0].text):
                raise HomeostatError(
                    f"the prompt of seed {number} does not end with what that user says "
                    f"({talk.turns[0].text!r}); train on FeltReward.dataset."
                )
        replies = [_text(completion).strip() for completion in completions]
        answered = answers(self.policy, players, talks, replies)
        whole = [
            Conversation((*with_given_reply(self.policy, talk, reply).turns, answer))
            for talk, reply, answer in zip(talks, replies, answered, strict=True)
        ]
        return [paid[-1] for paid in self.paid(seed, whole)]

    def paid(self, seeds: Sequence[int], talks: Sequence[Conversation]) -> list[list[float]]:
        """The reward of every reply of talks that end with what their users have said."""
        episodes = [
            Episode(seed, self.bots.spawn(seed).name, talk, self.policy.encode(talk), 0)
            for seed, talk in zip(seeds, talks, strict=True)
        ]
        with self.policy.reference():
            readings = self.reader.measure(episodes)
        return [[float(value) for value in r.total_N] for r in self.reward.score(talks, readings)]

    def talks(self, turns: int, reply_tokens: int = 48) -> Talks:
        """What TRL's trainer takes as ``rollout_func``: talks of so many replies.

        Args:
            turns: Replies of a talk.
            reply_tokens: Of each reply, at most; TRL's own max_completion_length does not count.
        """
        return Talks(self, turns, reply_tokens)


class Talks:
    """A ``rollout_func``: policy and users take turns; a talk is paid the sum of what is felt.

    TRL's ``environment_factory`` hands a model's *tool calls* on, and a talk has none; a rollout of
    its own is what TRL has for the rest. The tokens of users are masked (``env_mask``).
    """

    def __init__(self, reward: FeltReward, turns: int, reply_tokens: int) -> None:
        """Nothing is sampled yet.

        Raises:
            HomeostatError: A talk would have no reply.
        """
        if turns < 1 or reply_tokens < 1:
            raise HomeostatError(
                f"turns={turns} and reply_tokens={reply_tokens} must be 1 or more."
            )
        self.reward, self.turns, self.reply_tokens = reward, turns, reply_tokens

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Ids, masks and rewards of one talk per prompt, as TRL wants them.

        Args:
            prompts: Of `FeltReward.dataset`; each as often as TRL has it.
            trainer: TRL's, whose model, template and sampling are used.

        Raises:
            HomeostatError: A prompt is no user's opening.
        """
        reward = self.reward
        seeds = [self._seed(_text(prompt)) for prompt in prompts]
        tokenizer = trainer.processing_class
        players = [reward.bots.spawn(seed) for seed in seeds]
        talks = [Conversation((player.opening(),)) for player in players]
        begun = tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        said: list[list[int]] = [[] for _ in prompts]
        mask: list[list[int]] = [[] for _ in prompts]
        for turn in range(self.turns):
            rows = [[*start, *more] for start, more in zip(begun, said, strict=True)]
            sampled = self._sample(rows, trainer)
            replies = tokenizer.batch_decode(sampled, skip_special_tokens=True)
            answered = answers(reward.policy, players, talks, [text.strip() for text in replies])
            for row, (ids, text, answer) in enumerate(zip(sampled, replies, answered, strict=True)):
                replied = with_given_reply(reward.policy, talks[row], text.strip())
                talks[row] = Conversation((*replied.turns, answer))
                goes_on = turn + 1 < self.turns
                heard = _between(tokenizer, ids, answer.text) if goes_on else []
                said[row] += [*ids, *heard]
                mask[row] += [1] * len(ids) + [0] * len(heard)
        return {
            "prompt_ids": [list(ids) for ids in begun],
            "completion_ids": said,
            "logprobs": None,  # TRL computes those of the policy itself
            "env_mask": mask,
            "felt": [sum(paid) for paid in reward.paid(seeds, talks)],
        }

    def _seed(self, opening: str) -> int:
        if opening not in self.reward.users:
            raise HomeostatError(
                f"the prompt {opening!r} is no user's opening; train on FeltReward.dataset."
            )
        return self.reward.users[opening]

    def _sample(self, rows: Sequence[Sequence[int]], trainer: Any) -> list[list[int]]:
        """Ids of one reply to each row, with the sign that ends it if it was said."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        tokenizer, width = trainer.processing_class, max(map(len, rows))
        padded = torch.full((len(rows), width), tokenizer.pad_token_id, device=model.device)
        read = torch.zeros_like(padded)
        for row, ids in enumerate(rows):
            padded[row, width - len(ids) :] = torch.tensor(ids)
            read[row, width - len(ids) :] = 1
        sampling = copy(trainer.generation_config)
        sampling.max_new_tokens = self.reply_tokens
        training = model.training
        model.eval()
        with torch.no_grad():
            made = model.generate(input_ids=padded, attention_mask=read, generation_config=sampling)
        model.train(training)
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        return [until_end(row, ends) for row in made[:, width:].tolist()]


def until_end(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """Ids up to the first that ends a reply, which is kept; padding behind it is not."""
    last = next((place for place, one in enumerate(ids) if one in ends), len(ids) - 1)
    return list(ids[: last + 1])


def _between(tokenizer: Any, reply: Sequence[int], answer: str) -> list[int]:
    """What stands between a reply and the next: its end, the user's turn, the next one's head."""
    mark = "REPLY"
    talk = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": mark},
        {"role": "user", "content": answer},
    ]
    shown = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    behind = shown.partition(mark)[2]
    if reply and reply[-1] == tokenizer.eos_token_id:
        behind = behind.removeprefix(tokenizer.eos_token)
    return list(tokenizer(behind, add_special_tokens=False)["input_ids"])


def term(
    conversation: Conversation,
    _signals: Mapping[str, Any],
    _trace: Any,
    function: str,
    **columns: Any,
) -> list[float]:
    """A reward function of TRL's shape, asked about every assistant turn of a conversation.

    Args:
        conversation: Whose replies are scored.
        function: Dotted path of ``func(prompts, completions, **kwargs)``, which gets lists of
            messages and gives one number per completion; None of them counts as 0.
        **columns: What else it is given, each as a list with the same value for all.
    """
    turns = conversation.assistant_turns
    told = {name: [value] * len(turns) for name, value in columns.items()}
    scores = get_object(function)(
        prompts=[_messages(conversation.turns[:turn]) for turn in turns],
        completions=[_messages(conversation.turns[turn : turn + 1]) for turn in turns],
        **told,
    )
    return [0.0 if score is None else float(score) for score in scores]


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _text(given: Any) -> str:
    """What was said last: of messages the last one's content."""
    return str(given[-1]["content"] if isinstance(given, list) else given)
