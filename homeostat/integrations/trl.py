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
frozen base of homeostat's own reads how the answer sounds. Single-turn: an episode is an opening, a
reply and an answer. What a policy keeps about itself (entropy, its own perplexity, activation norm)
is not known to a reward function, which sees text alone, so only signals that are read from text
may be rewarded.

The other way round, `term` makes a TRL reward function a term of homeostat's reward:

    homeostat '+reward.terms.x={_target_: homeostat.integrations.trl.term, function: my.func}'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

    def dataset(self, count: int, update: int = 0) -> Dataset:
        """Openings of so many users, in TRL's conversational form, with the ``seed`` of each.

        Args:
            count: How many.
            update: Another number gives other users; none of them is a held-out one.
        """
        from datasets import Dataset

        seeds = training_seeds(self.seed, update, count)
        openings = [self.bots.spawn(seed).opening().text for seed in seeds]
        prompts = [[{"role": "user", "content": text}] for text in openings]
        return Dataset.from_dict({"prompt": prompts, "seed": seeds})

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        seed: Sequence[int],
        **_others: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            prompts: What each completion replies to: messages, or a text.
            completions: Messages, or texts.
            seed: Of each prompt's user, the column that `dataset` gives.

        Raises:
            HomeostatError: A prompt does not end with what its user has said.
        """
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
        episodes = [
            Episode(number, player.name, talk, self.policy.encode(talk), 0)
            for number, player, talk in zip(seed, players, whole, strict=True)
        ]
        with self.policy.reference():
            readings = self.reader.measure(episodes)
        return [float(one.total_N[-1]) for one in self.reward.score(whole, readings)]


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
