"""Whole episodes: the policy and the bots take turns, all episodes of a batch at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from homeostat.bots.scripted import HELD_OUT_BELOW
from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.rollout.appraisal import answers
from homeostat.rollout.generate import BATCH, Sampler
from homeostat.types import Bots, Conversation, Episode, Progress, Turn, silent

# First seed of each disjoint range; users of the first two are the bots' held-out ones.
HELD_OUT, HEADROOM, CALIBRATION, VALIDATION, TRAINING = (
    0,
    250_000,
    HELD_OUT_BELOW,
    750_000,
    1_000_000,
)


def held_out_seeds(count: int) -> list[int]:
    """Seeds of the evaluation's episodes: the same in every run, never trained on."""
    return list(range(HELD_OUT, HELD_OUT + count))


def headroom_seeds(count: int) -> list[int]:
    """Seeds of the held-out users that the reward's headroom is measured on."""
    return list(range(HEADROOM, HEADROOM + count))


def calibration_seeds(count: int) -> list[int]:
    """Seeds of the episodes that set points are measured on; disjoint from the others."""
    return list(range(CALIBRATION, CALIBRATION + count))


def validation_seeds(count: int) -> list[int]:
    """Seeds of the openings that failures are made on; disjoint from the others."""
    return list(range(VALIDATION, VALIDATION + count))


def training_seeds(seed: int, update: int, count: int) -> list[int]:
    """Seeds of one update's episodes; no two updates and no two run seeds share any."""
    first = TRAINING * (1 + seed) + update * count
    return list(range(first, first + count))


def play(
    policy: Policy,
    bots: Bots,
    seeds: Sequence[int],
    config: RolloutConfig,
    temperature: float = 1.0,
    progress: Progress = silent,
    system: str | None = None,
) -> list[Episode]:
    """One episode per seed; each begins and ends with a turn of its bot.

    Episodes of one seed share the bot but not the sampling: they are samples 0, 1, 2, ... of it.
    The episode of a seed and sample depends on these and the policy alone, not on the batch it is
    in.

    Args:
        policy: Plays the assistant, as it is now.
        bots: Play the users.
        seeds: Seed of each episode's bot and of its sampling; the same one may come several times.
        config: Number of turns and their length.
        temperature: Of the sampling, > 0; training and evaluation use 1, where the policy's own
            log-probabilities are those of the sampling.
        progress: Told how many replies are done, and their tokens.
        system: What a system turn in front of the bot's opening tells the policy; None = no turn.
    """
    draws = numbered(seeds)
    episodes: list[Episode] = []
    for start in range(0, len(draws), BATCH):
        part = draws[start : start + BATCH]
        before = len(episodes) * config.turns

        def tell(done: int, tokens: int, before: int = before) -> None:
            progress(before + done, len(seeds) * config.turns, tokens)

        episodes.extend(_play_batch(policy, bots, part, config, temperature, tell, system))
    return episodes


def numbered(seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Each seed with the number of its sample: how often the seed has come before."""
    seen: Counter[int] = Counter()
    draws = []
    for seed in seeds:
        draws.append((seed, seen[seed]))
        seen[seed] += 1
    return draws


def uniforms(seed: int, turn: int, count: int, sample: int = 0) -> Float[np.ndarray, " N"]:
    """The random numbers behind one reply of one of a seed's episodes."""
    key = [seed, turn, sample] if sample else [seed, turn]
    return np.random.default_rng(key).random(count)


def _play_batch(
    policy: Policy,
    bots: Bots,
    draws: Sequence[tuple[int, int]],
    config: RolloutConfig,
    temperature: float,
    tell: Callable[[int, int], None],
    system: str | None,
) -> list[Episode]:
    players = [bots.spawn(seed) for seed, _ in draws]
    told = () if system is None else (Turn("system", system),)
    talks = [Conversation((*told, player.opening())) for player in players]
    sampler = Sampler(policy, len(draws))
    streams = [policy.encode(talk) for talk in talks]
    read = [0] * len(draws)
    for turn in range(config.turns):
        sampler.append([s.ids[done:] for s, done in zip(streams, read, strict=True)])
        numbers = [uniforms(seed, turn, config.max_new_tokens, sample) for seed, sample in draws]
        replies = sampler.sample(np.stack(numbers), temperature)
        read = [len(s.ids) + len(reply) for s, reply in zip(streams, replies, strict=True)]
        texts = [policy.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies]
        answered = answers(policy, players, talks, texts)
        for row, (ids, text, answer) in enumerate(zip(replies, texts, answered, strict=True)):
            said = (Turn("assistant", text, token_ids=tuple(ids)), answer)
            talks[row] = Conversation((*talks[row].turns, *said))
            streams[row] = policy.encode(talks[row], streams[row])
        tell((turn + 1) * len(draws), sum(map(len, replies)))
    return [
        Episode(seed, player.name, talk, stream, sample)
        for (seed, sample), player, talk, stream in zip(draws, players, talks, streams, strict=True)
    ]
