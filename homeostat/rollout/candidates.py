"""Several replies to the same conversation so far, each answered by the bot."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.rollout.appraisal import answers
from homeostat.rollout.episodes import uniforms
from homeostat.rollout.generate import Sampler
from homeostat.types import Bots, Conversation, Episode, Progress, Turn, silent


def play_candidates(
    policy: Policy,
    bots: Bots,
    seeds: Sequence[int],
    count: int,
    config: RolloutConfig,
    progress: Progress = silent,
) -> list[list[Episode]]:
    """Groups of ``count`` episodes that are the same up to the last reply and the bot's answer.

    One group per seed and turn: at every turn ``count`` replies are sampled to the conversation so
    far, and it goes on from the first of them, which is what `play` would have sampled. Bots are
    copied before they answer, so that none hears another's reply.

    Args:
        policy: Plays the assistant, as it is now, sampled at temperature 1.
        bots: Play the users.
        seeds: Seed of each conversation's bot and of its sampling.
        count: Candidate replies per prefix.
        config: Number of turns and their length.
        progress: Told how many replies are done, and their tokens.
    """
    players = [bots.spawn(seed) for seed in seeds]
    talks = [Conversation((player.opening(),)) for player in players]
    stem = Sampler(policy, len(seeds))
    streams = [policy.encode(talk) for talk in talks]
    read = [0] * len(seeds)
    groups: list[list[Episode]] = []
    for turn in range(config.turns):
        stem.append([s.ids[done:] for s, done in zip(streams, read, strict=True)])
        branches = stem.keep([row for row in range(len(seeds)) for _ in range(count)])
        numbers = [
            uniforms(seed, turn, config.max_new_tokens, sample)
            for seed in seeds
            for sample in range(count)
        ]
        replies = branches.sample(np.stack(numbers))
        texts = [policy.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies]
        heard = [copy.deepcopy(player) for player in players for _ in range(count)]
        prefixes = [talk for talk in talks for _ in range(count)]
        answered = answers(policy, heard, prefixes, texts)
        fresh = []
        for row, seed in enumerate(seeds):
            group = []
            for sample in range(count):
                place = row * count + sample
                player, text, ids = heard[place], texts[place], replies[place]
                said = (Turn("assistant", text, token_ids=tuple(ids)), answered[place])
                talk = Conversation((*talks[row].turns, *said))
                stream = policy.encode(talk, streams[row])
                group.append((player, Episode(seed, player.name, talk, stream, sample)))
            read[row] = len(streams[row].ids) + len(replies[row * count])
            players[row], first = group[0]
            talks[row], streams[row] = first.conversation, first.tokens
            fresh.append([episode for _, episode in group])
        groups.extend(fresh)
        stem = branches.keep(range(0, len(replies), count))
        done = (turn + 1) * len(replies)
        progress(done, config.turns * len(replies), sum(map(len, replies)))
    return groups
