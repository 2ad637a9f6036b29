"""What the frozen base thinks of a reply, for users who are to mind more than its words.

A bot that counts words takes a word salad for a fine answer, and a list of keywords for a relevant
one. The base does not: it finds the first improbable, and the second no likelier for the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from homeostat.bots.affect import Appraisal
from homeostat.bots.model import ModelBot
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import base_nll, with_given_reply
from homeostat.types import AppraisingBot, Bot, Conversation, Role, Turn

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


def appraise(
    policy: Policy, exchanges: Sequence[tuple[str, str, tuple[str, str] | None]]
) -> list[Appraisal | None]:
    """What the base thinks of each reply; None for a reply without words.

    Args:
        policy: Read with the adapter off.
        exchanges: What the user has said, the reply to it, and, where the user has asserted
            something, that and its true counterpart, which the reply may lean to.
    """
    spoken = [i for i, (_, reply, _) in enumerate(exchanges) if reply.strip()]
    asserted = [i for i in spoken if exchanges[i][2] is not None]
    in_context = [_talk(*exchanges[i][:2]) for i in spoken]
    alone = [_talk(NOTHING_SAID, exchanges[i][1]) for i in spoken]
    leaning = [
        _talk(exchanges[i][0], reply, ASKED, _sentence(statement))
        for i in asserted
        for reply in (exchanges[i][1], NO_ANSWER)
        for statement in exchanges[i][2] or ()
    ]
    read = [*in_context, *alone, *leaning]
    given = [with_given_reply(policy, Conversation(t.turns[:-1]), t.turns[-1].text) for t in read]
    nll = [float(of_tokens.mean()) for of_tokens in base_nll(policy, given)] if given else []
    count = len(spoken)
    # Of each asserting row: false and true statement after the reply, then after no answer.
    leans_NRS = np.array(nll[2 * count :]).reshape(-1, 2, 2)
    towards_truth = leans_NRS[:, :, 0] - leans_NRS[:, :, 1]
    denied = dict(zip(asserted, (towards_truth[:, 0] - towards_truth[:, 1]).tolist(), strict=True))
    result: list[Appraisal | None] = [None] * len(exchanges)
    for place, i in enumerate(spoken):
        result[i] = Appraisal(nll[place], nll[count + place], denied.get(i))
    return result


def _talk(*texts: str) -> Conversation:
    """A conversation that the user begins."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))


def _sentence(statement: str) -> str:
    return f"{statement[0].upper()}{statement[1:]}."
