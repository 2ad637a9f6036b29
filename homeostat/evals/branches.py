"""Prompts that begin alike, read once, and given answers that branch off from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise

from homeostat.models.adapters import Policy
from homeostat.models.forward import can_share, common_length
from homeostat.rollout.generate import Sampler

BRANCHES = 96  # given answers read at once


def read_together(policy: Policy, prompts: Sequence[Sequence[int]]) -> Sampler:
    """A sampler that has read these prompts, a row each; beginnings that some share only once."""
    stems, stem_of = shared_stems(prompts) if can_share(policy) else ([], [])
    if not stems:
        sampler = Sampler(policy, len(prompts))
        sampler.append(prompts)
        return sampler
    sampler = Sampler(policy, len(stems))
    sampler.append(stems)
    sampler = sampler.keep(stem_of)
    rest = zip(prompts, stem_of, strict=True)
    sampler.append([prompt[len(stems[stem]) :] for prompt, stem in rest])
    return sampler


def shared_stems(
    prompts: Sequence[Sequence[int]],
) -> tuple[list[Sequence[int]], list[int]]:
    """Beginnings to be read once for the neighbours that share them.

    Neighbours that share at least so many ids make a group, and its stem is what the whole group
    shares; of all such lengths the one is taken by which the fewest columns are computed, padding
    included. At least one id of every prompt is left, so that something predicts what follows.

    Args:
        prompts: Sorted, so that those which begin alike are neighbours.

    Returns:
        The stems, and each prompt's number among them; empty where nothing is gained.
    """
    alike = [common_length(pair) for pair in pairwise(prompts)]
    common = min([*alike, *map(len, prompts)])
    best = len(prompts) * (max(map(len, prompts)) - common)  # only what all share is read once
    cheapest: tuple[list[Sequence[int]], list[int]] = ([], [])
    for least in sorted({length for length in alike if length > common}):
        groups = [0, *accumulate(int(length < least) for length in alike)]
        members = [
            [p for p, group in zip(prompts, groups, strict=True) if group == g]
            for g in range(groups[-1] + 1)
        ]
        lengths = [
            min(common_length(neighbours), min(map(len, neighbours)) - 1) for neighbours in members
        ]
        rest = max(len(p) - lengths[g] for p, g in zip(prompts, groups, strict=True))
        columns = len(members) * (max(lengths) - common) + len(prompts) * rest
        if columns < best:
            best = columns
            stems = [
                neighbours[0][:length] for neighbours, length in zip(members, lengths, strict=True)
            ]
            cheapest = stems, groups
    return cheapest


def alike_in_length(
    branches: Sequence[tuple[int, int]], given: Sequence[Sequence[Sequence[int]]]
) -> Iterator[list[tuple[int, int]]]:
    """Branches (row, answer) in batches whose answers need no padding."""

    def length(branch: tuple[int, int]) -> int:
        return len(given[branch[0]][branch[1]])

    for _, group in groupby(sorted(branches, key=length), length):
        alike = list(group)
        for first in range(0, len(alike), BRANCHES):
            yield alike[first : first + BRANCHES]


def totals(sampler: Sampler, rows: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of a reply after some of the rows, nats; the sampler has read nothing more.

    Args:
        sampler: Has read the prompts.
        rows: A row may be named more than once.
        replies: Equally many ids for each.
    """
    if len(replies[0]) == 1:
        return sampler.next_logprob(rows, [ids[0] for ids in replies]).tolist()
    return [float(logprob_R.sum()) for logprob_R in sampler.keep(rows).score(replies)]


def ids_of(policy: Policy, text: str) -> list[int]:
    """Token ids of a text that stands on its own."""
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
