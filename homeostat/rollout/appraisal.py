"""What the frozen base thinks of a reply, for users who are to mind more than its words.

A bot that counts words takes a word salad for a fine answer, and a list of keywords for a relevant
one. The base does not: it finds the first improbable, and the second no likelier for the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from homeostat.bots.affect import Appraisal
from homeostat.bots.model import ModelBot
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import base_nll, with_given_replies
from homeostat.types import AppraisingBot, Bot, Conversation, Role, Turn

Exchange = tuple[str, str, tuple[str, str] | None]  # said, replied, and what was claimed, if so

NOTHING_SAID = "Go on."  # stands where the user's words were, to see what they have made likelier
NO_ANSWER = "I see."  # stands where the reply was, to see what it has made likelier
ASKED = "So what is true, in short?"


def answers(
    policy: Policy, players: Sequence[Bot], talks: Sequence[Conversation], replies: Sequence[str]
) -> list[Turn]:
    """What each bot answers to the reply that it gets, with the base's appraisal if it wants one.

    Args:
        policy: Its base appraises.
        players: One bot per conversation.
        talks: The conversations up to what the bot has just said.
        replies: The assistant's replies to that.
    """
    played = [bot for bot in players if isinstance(bot, ModelBot)]
    if played:  # a population is played by a model as a whole, and asked together
        return played[0].population.answers(played, replies)
    wanting = {i: bot for i, bot in enumerate(players) if _wants(bot)}
    said = [(talks[i].turns[-1].text, replies[i], bot.asserted) for i, bot in wanting.items()]
    appraised = dict(zip(wanting, appraise(policy, said), strict=True))
    return [
        wanting[i].answer_appraised(reply, appraised[i]) if i in wanting else bot.answer(reply)
        for i, (bot, reply) in enumerate(zip(players, replies, strict=True))
    ]


def _wants(bot: Bot) -> TypeGuard[AppraisingBot]:
    return isinstance(bot, AppraisingBot) and bot.appraises


def appraise(policy: Policy, exchanges: Sequence[Exchange]) -> list[Appraisal | None]:
    """What the base thinks of each reply; None for a reply without words.

    Args:
        policy: Read with the adapter off.
        exchanges: What the user has said, the reply to it, and, where the user has asserted
            something, that and its true counterpart, which the reply may lean to.
    """
    nll = _read_by_base(policy, [talk for one in exchanges for talk in _talks(*one)])
    return [_appraisal(one, nll) if one[1].strip() else None for one in exchanges]


def _talks(said: str, reply: str, asserted: tuple[str, str] | None) -> list[Conversation]:
    """What the base reads to appraise one reply; nothing where it has no words."""
    if not reply.strip():
        return []
    alone = _talk(NOTHING_SAID, reply)
    if asserted is None:
        return [alone, _talk(said, reply)]
    after_reply, before = (
        [_talk(said, text, ASKED, _sentence(statement)) for statement in asserted]
        for text in (reply, NO_ANSWER)
    )
    return [alone, *after_reply, *before]


def _appraisal(exchange: Exchange, nll: Mapping[Conversation, Sequence[float]]) -> Appraisal:
    alone, *others = (nll[talk] for talk in _talks(*exchange))
    if exchange[2] is None:
        return Appraisal(others[0][0], alone[0], None)
    (in_context, false), (_, true), (_, false_before), (_, true_before) = others
    return Appraisal(in_context, alone[0], (false - true) - (false_before - true_before))


def _read_by_base(
    policy: Policy, talks: Sequence[Conversation]
) -> dict[Conversation, tuple[float, ...]]:
    """Of each conversation the mean -log p of every assistant turn; what is the same, read once."""
    distinct = list(dict.fromkeys(talks))
    given = [with_given_replies(policy, talk) for talk in distinct]
    found = {}
    for talk, sampled, nll_R in zip(distinct, given, base_nll(policy, given), strict=True):
        sizes = [len(sampled.turns[turn].token_ids or ()) for turn in sampled.assistant_turns]
        of_turns = np.split(nll_R, np.cumsum(sizes)[:-1])
        found[talk] = tuple(float(of_tokens.mean()) for of_tokens in of_turns)
    return found


def _talk(*texts: str) -> Conversation:
    """A conversation that the user begins."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))


def _sentence(statement: str) -> str:
    return f"{statement[0].upper()}{statement[1:]}."
