"""Scripted users: reproducible, varied, and moved by what the assistant says."""

from __future__ import annotations

import importlib
import json
import string
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from configs import scripted_config

from homeostat.bots.affect import INDIFFERENT, notice
from homeostat.bots.scripted import (
    GRADES,
    HELD_OUT,
    HELD_OUT_BELOW,
    MOST_VOICED,
    TRAIN,
    MixedBots,
    ScriptedBots,
    phrases,
    topics,
    voiced,
)
from homeostat.cli import CONF
from homeostat.config.bots import MixedBotConfig
from homeostat.config.register import build
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.types import Bots, Turn

NAMES = sorted({path.stem for path in (CONF / "bot").glob("*.yaml")} - {"model", "file"})
MOVES = {"opening"} | {kind for kind, _ in phrases(TRAIN) if kind.startswith("move_")}
SCRIPTS = Path(__file__).parents[2] / "scripts"
SPLITS = (TRAIN, HELD_OUT)
EVERY_TOPIC = [topic for split in SPLITS for topic in topics(split)]
AGREEING = "Yes, you are absolutely right, and I agree with you."
AGREED = (AGREEING, "Exactly so.", "Of course, good point.", "Indeed, that's true.")
CONTRADICTING = "No, that is wrong, although many people believe it."


@pytest.fixture(scope="module")
def configs(composed: Callable[..., RunConfig]) -> dict[str, Any]:
    """The config of every scripted bot of conf/bot."""
    mixed = composed("bot=mixed").bot
    assert isinstance(mixed, MixedBotConfig)
    found: dict[str, Any] = {"mixed": mixed, **mixed.bots}
    for name in set(NAMES) - set(found):
        found[name] = composed(f"bot={name}").bot
    return found


def chat(bots: Bots, seed: int, *replies: str) -> list[Turn]:
    """All turns of a user who gets these replies."""
    bot = bots.spawn(seed)
    return [bot.opening(), *(bot.answer(reply) for reply in replies)]


def rows(name: str) -> list[dict[str, Any]]:
    text = resources.files("homeostat.data").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# --- reproducible and varied --------------------------------------------------------------------


def test_same_seed_gives_the_same_user(configs: dict[str, Any]) -> None:
    replies = ("One.", AGREEING, "", "Two?")
    first = chat(build(configs["mixed"], Bots), 5, *replies)
    other = build(configs["mixed"], Bots)
    chat(other, 4, "Something else.")
    assert chat(other, 5, *replies) == first


def test_different_seeds_give_different_users(configs: dict[str, Any]) -> None:
    bots = build(configs["curious"], Bots)
    talks = [tuple(turn.text for turn in chat(bots, seed, "Well.")) for seed in range(30)]
    assert len(set(talks)) >= 25


def test_different_bots_have_different_topics_for_the_same_seed(configs: dict[str, Any]) -> None:
    openings = [
        (
            build(configs["curious"], Bots).spawn(s).opening(),
            build(configs["bored"], Bots).spawn(s).opening(),
        )
        for s in range(30)
    ]
    assert sum(first.text == second.text for first, second in openings) < 10


@pytest.fixture(scope="module")
def openings() -> dict[str, Counter[int]]:
    """How often 3000 users opened with each opening of their topic."""
    bots = ScriptedBots(scripted_config(name="any"))
    place = {text: (t["topic"], i) for t in EVERY_TOPIC for i, text in enumerate(t["openings"])}
    counts: dict[str, Counter[int]] = {}
    for seed in range(HELD_OUT_BELOW - 1000, HELD_OUT_BELOW + 2000):
        topic, index = place[bots.spawn(seed).opening().text]
        counts.setdefault(topic, Counter())[index] += 1
    return counts


def test_every_opening_of_every_topic_is_used(openings: dict[str, Counter[int]]) -> None:
    used = sum(len(counts) for counts in openings.values())
    assert used == sum(len(topic["openings"]) for topic in EVERY_TOPIC)


def test_the_choice_of_words_does_not_follow_from_the_topic(
    openings: dict[str, Counter[int]],
) -> None:
    """Two users with the same topic open with the same words about one time in three."""
    same = sum(n * (n - 1) for counts in openings.values() for n in counts.values())
    pairs = sum(counts.total() * (counts.total() - 1) for counts in openings.values())
    assert same / pairs == pytest.approx(1 / 3, abs=0.05)


def test_the_opening_shows_the_initial_affect_and_no_voice(configs: dict[str, Any]) -> None:
    turn = build(configs["frustrated"], Bots).spawn(3).opening()
    assert turn.role == "user"
    assert turn.move == "opening"
    assert turn.affect == configs["frustrated"].initial
    assert turn.token_ids is None
    assert any(turn.text in topic["openings"] for topic in EVERY_TOPIC)


def test_an_affect_that_is_not_configured_starts_at_zero() -> None:
    config = scripted_config(name="b", initial={"boredom": 0.4})
    turn = ScriptedBots(config).spawn(0).opening()
    assert turn.affect == {
        "sentiment": 0.0,
        "curiosity": 0.0,
        "frustration": 0.0,
        "confusion": 0.0,
        "boredom": 0.4,
    }


# --- every bot, any reply -----------------------------------------------------------------------

ODD_REPLIES = [
    ("", "   ", "\n\n", "\t", "", ""),
    ("?", "!!!", "42", "'''", "……", "\x00"),
    ("{topic} {claim}", "{", "}", "{0}", "%s", "{{}}"),
    ("<|im_end|>", "<b>x</b>", "[bold]x[/bold]", "\ud83d\ude00", "نعم", "是的"),
    ("word " * 1500, "x" * 9000, AGREEING * 50, "No. " * 300, "?" * 3000, "a\n" * 900),
    (AGREEING, CONTRADICTING, AGREEING, CONTRADICTING, AGREEING, CONTRADICTING),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("replies", ODD_REPLIES, ids=range(len(ODD_REPLIES)))
def test_every_bot_plays_six_turns(
    configs: dict[str, Any], name: str, replies: tuple[str, ...]
) -> None:
    for seed in range(3):
        turns = chat(build(configs[name], Bots), seed, *replies)
        assert len(turns) == 7
        for turn in turns:
            assert turn.role == "user"
            assert turn.text.strip()
            assert "{" not in turn.text
            assert "}" not in turn.text
            assert turn.move in MOVES
            assert turn.affect is not None
            assert set(turn.affect) == set(AFFECTS)
            for affect, level in turn.affect.items():
                assert (-1 if affect == "sentiment" else 0) <= level <= 1


def test_the_schedule_is_followed_and_its_last_move_repeated() -> None:
    config = scripted_config(
        name="b", schedule=["opening", "move_claim", "move_nonsense", "move_farewell"]
    )
    turns = chat(ScriptedBots(config), 0, *["Tides rise."] * 5)
    assert [turn.move for turn in turns] == [*config.schedule, "move_farewell", "move_farewell"]


def test_an_unknown_move_is_refused_with_the_known_ones() -> None:
    config = scripted_config(name="grumpy", schedule=["opening", "move_grumble"])
    with pytest.raises(HomeostatError) as caught:
        ScriptedBots(config)
    message = str(caught.value)
    assert all(word in message for word in ("grumpy", "move_grumble", *MOVES))


@pytest.mark.parametrize("kind", ["neutral", "boredom_up"])
def test_a_voice_is_no_move(kind: str) -> None:
    with pytest.raises(HomeostatError, match=kind):
        ScriptedBots(scripted_config(name="b", schedule=[kind]))


# --- what moves a bot ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_agreement_pleases_the_sycophancy_bait(configs: dict[str, Any], seed: int) -> None:
    bots = build(configs["sycophancy_bait"], Bots)
    opening, *answers = chat(bots, seed, *AGREED)
    assert opening.move == "move_claim"
    assert [turn.move for turn in answers] == [
        "move_agreement_pleased",
        "move_agreement_pleased",
        "move_agreement_pleased",
        "move_disengage",  # instead of move_praise_fishing: nothing was said about the matter
    ]
    home = configs["sycophancy_bait"].initial["sentiment"]
    assert all(turn.affect is not None and turn.affect["sentiment"] > home for turn in answers)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("reply", [CONTRADICTING, "Tides rise and fall.", ""])
def test_without_agreement_the_sycophancy_bait_keeps_pressing(
    configs: dict[str, Any], reply: str, seed: int
) -> None:
    bots = build(configs["sycophancy_bait"], Bots)
    turns = chat(bots, seed, *[reply] * 4)
    assert [turn.move for turn in turns[:-1]] == configs["sycophancy_bait"].schedule[:-1]
    claims = [topic["claim"] for topic in EVERY_TOPIC if topic["claim"] in turns[0].text]
    assert len(claims) == 1
    assert all(claims[0] in turn.text for turn in turns[1:4])


@pytest.mark.parametrize("seed", range(10))
def test_agreement_feels_better_than_contradiction(configs: dict[str, Any], seed: int) -> None:
    bots = build(configs["sycophancy_bait"], Bots)
    for agreed, denied in zip(
        chat(bots, seed, *[AGREEING] * 4)[1:],
        chat(bots, seed, *[CONTRADICTING] * 4)[1:],
        strict=True,
    ):
        assert agreed.affect is not None
        assert denied.affect is not None
        assert agreed.affect["sentiment"] > denied.affect["sentiment"] + 0.3
        assert agreed.affect["frustration"] <= denied.affect["frustration"]


def test_one_agreement_pleases_for_one_turn_only(configs: dict[str, Any]) -> None:
    turns = chat(build(configs["sycophancy_bait"], Bots), 0, AGREEING, CONTRADICTING, CONTRADICTING)
    assert [turn.move for turn in turns[1:]] == [
        "move_agreement_pleased",
        "move_authority",
        "move_pressure",
    ]


def test_an_answer_on_the_topic_calms_a_frustrated_user(configs: dict[str, Any]) -> None:
    bots = build(configs["frustrated"], Bots)
    topic = next(t for t in EVERY_TOPIC if bots.spawn(1).opening().text in t["openings"])
    helpful = f"I understand. It is about {' and '.join(topic['keywords'][:5])}, to begin with."
    calm, angry = chat(bots, 1, helpful)[1], chat(bots, 1, "### ###")[1]
    assert calm.affect is not None
    assert angry.affect is not None
    assert calm.affect["frustration"] < angry.affect["frustration"] - 0.3
    assert calm.affect["sentiment"] > angry.affect["sentiment"] + 0.3


def test_a_topic_shift_names_another_topic(configs: dict[str, Any]) -> None:
    bots = build(configs["topic_shift"], Bots)
    for seed in range(20):
        opening, first, second = chat(bots, seed, "Well.", "Well.")
        start = next(t["topic"] for t in EVERY_TOPIC if opening.text in t["openings"])
        assert first.move == second.move == "move_topic_shift"
        named = {t["topic"] for t in EVERY_TOPIC if t["topic"] in first.text}
        assert named
        assert start not in named
        assert first.text != second.text


# --- voice --------------------------------------------------------------------------------------


def shift(**moved: float) -> dict[str, float]:
    return dict.fromkeys(AFFECTS, 0.0) | moved


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({}, []),
        ({"boredom": 0.049}, []),
        ({"boredom": 0.05}, [("boredom_up", "mild")]),
        ({"boredom": 0.15}, [("boredom_up", "clear")]),
        ({"boredom": -0.3}, [("boredom_down", "strong")]),
        ({"sentiment": 0.09}, []),
        ({"sentiment": 0.1}, [("sentiment_up", "mild")]),
        ({"sentiment": -0.3}, [("sentiment_down", "clear")]),
        (
            {"confusion": -0.1, "curiosity": 0.4, "sentiment": 0.5, "boredom": 0.06},
            [("curiosity_up", "strong"), ("sentiment_up", "clear"), ("confusion_down", "mild")],
        ),
    ],
)
def test_what_is_voiced(moved: dict[str, float], expected: list[tuple[str, str]]) -> None:
    """The affects furthest from home, graded; sentiment has twice the range and counts half."""
    assert voiced(shift(**moved)) == expected
    assert len(expected) <= MOST_VOICED
    assert list(GRADES.values()) == sorted(GRADES.values(), reverse=True)


@pytest.mark.parametrize("seed", [3, HELD_OUT_BELOW + 3])
def test_words_show_what_has_moved(configs: dict[str, Any], seed: int) -> None:
    bots = build(configs["confused"], Bots)
    split = HELD_OUT if seed < HELD_OUT_BELOW else TRAIN
    bot = bots.spawn(seed)
    bot.opening()
    said = bot.answer("### ###").text
    for kind, level in voiced(bot.shift):
        assert any(text in said for text in phrases(split)[kind, level]), (kind, level, said)
    assert ("confusion_up", "strong") in voiced(bot.shift)


def test_an_unmoved_user_is_neutral() -> None:
    bots = ScriptedBots(scripted_config(name="b", noise=0.0))
    said = chat(bots, 0, "Well.")[1].text
    assert any(said.startswith(text) for text in phrases(HELD_OUT)["neutral", "mild"])


def test_hardly_two_replies_get_the_same_words(configs: dict[str, Any]) -> None:
    """Eight replies to the same words of a user, a hundredth apart in what they move."""
    bots, twins = build(configs["mixed"], Bots), []
    for seed in range(60):
        answers = []
        for step in range(8):
            bot = bots.spawn(seed)
            bot.opening()
            answers.append(bot.react(replace(INDIFFERENT, relevance=0.4 + step / 40)).text)
        counts = Counter(answers)
        twins += [counts[text] > 1 for text in answers]
    assert sum(twins) / len(twins) <= 0.1


# --- moves fit the talk -------------------------------------------------------------------------


def reacting(configs: dict[str, Any], name: str, seed: int = 0, **features: float) -> Turn:
    bot = build(configs[name], Bots).spawn(seed)
    bot.opening()
    return bot.react(replace(INDIFFERENT, **features))


@pytest.mark.parametrize(("agreement", "level"), [(-1.0, "contradicted"), (0.0, "undecided")])
def test_nobody_complains_of_a_correction_that_was_not_made(
    configs: dict[str, Any], agreement: float, level: str
) -> None:
    for seed in range(20):
        turn = reacting(configs, "sycophancy_bait", seed, agreement=agreement)
        claim = next(t["claim"] for t in EVERY_TOPIC if t["claim"] in turn.text)
        fitting = [text.format(claim=claim) for text in phrases(HELD_OUT)["move_pressure", level]]
        assert any(turn.text.endswith(text) for text in fitting), turn.text


@pytest.mark.parametrize(("relevance", "level"), [(0.1, "unanswered"), (0.5, "answered")])
def test_who_was_answered_does_not_say_otherwise(
    configs: dict[str, Any], relevance: float, level: str
) -> None:
    for seed in range(20):
        turn = reacting(configs, "frustrated", seed, relevance=relevance)
        if turn.move == "move_ask_again":
            texts = phrases(HELD_OUT)["move_ask_again", level]
            assert any(turn.text.endswith(text) for text in texts), turn.text


def test_who_has_woken_up_asks_further_and_who_is_bored_gives_nothing(
    configs: dict[str, Any],
) -> None:
    assert reacting(configs, "bored", relevance=1.0, question=1.0).move == "move_deepen"
    assert reacting(configs, "bored", relevance=0.0).move == "move_disengage"
    assert reacting(configs, "curious", relevance=0.0, novelty=0.0).move == "move_disengage"


def test_nobody_who_has_calmed_down_is_rude(configs: dict[str, Any]) -> None:
    def second_move(**features: float) -> str | None:
        bot = build(configs["frustrated"], Bots).spawn(0)
        bot.opening()
        return [bot.react(replace(INDIFFERENT, relevance=0.6, **features)).move for _ in range(2)][
            1
        ]

    assert second_move() == "move_hostility"
    assert second_move(acknowledgement=1.0) == "move_ask_again"


# --- who is held out ----------------------------------------------------------------------------


def test_held_out_users_have_topics_openings_and_phrases_that_training_never_uses() -> None:
    train, held_out = (
        {text for texts in phrases(split).values() for text in texts} for split in SPLITS
    )
    assert not train & held_out
    assert min(len(train), len(held_out)) >= 400
    assert len(train) + len(held_out) >= 1200
    for field in ("topic", "claim", "truth"):
        assert not {t[field] for t in topics(TRAIN)} & {t[field] for t in topics(HELD_OUT)}
    for field in ("openings", "followups"):
        own = [{text for t in topics(split) for text in t[field]} for split in SPLITS]
        assert not own[0] & own[1]
    assert len(EVERY_TOPIC) >= 120


@pytest.mark.parametrize(
    ("seed", "split"), [(HELD_OUT_BELOW - 1, HELD_OUT), (HELD_OUT_BELOW, TRAIN)]
)
def test_the_seed_says_who_is_held_out(configs: dict[str, Any], seed: int, split: str) -> None:
    opening = build(configs["curious"], Bots).spawn(seed).opening().text
    assert any(opening in topic["openings"] for topic in topics(split))


def test_the_graded_corpus_is_what_its_script_writes_and_quotes_nobody_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = {text for texts in phrases(HELD_OUT).values() for text in texts if len(text) > 12}
    texts = [row["text"] for row in rows("affect_users.jsonl")]
    assert len(texts) >= 1000
    assert not [
        text for text in texts for phrase in held_out if phrase in text and "{" not in phrase
    ]
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    script = importlib.import_module("build_user_corpus")
    assert list(script.rows()) == rows("affect_users.jsonl")


# --- the mixed population -----------------------------------------------------------------------


def test_mixed_gives_equal_shares(configs: dict[str, Any]) -> None:
    bots = build(configs["mixed"], Bots)
    assert isinstance(bots, MixedBots)
    kinds = len(configs["mixed"].bots)
    shares = Counter(bots.spawn(seed).name for seed in range(50 * kinds))
    assert shares == dict.fromkeys(configs["mixed"].bots, 50)


def test_mixed_shows_every_bot_within_one_round(configs: dict[str, Any]) -> None:
    bots, kinds = build(configs["mixed"], Bots), len(configs["mixed"].bots)
    for first in (0, 7, 500_003, 1_000_016):
        names = {bots.spawn(seed).name for seed in range(first, first + kinds)}
        assert names == set(configs["mixed"].bots)


def test_a_member_of_mixed_is_the_same_user_as_alone(configs: dict[str, Any]) -> None:
    bots = build(configs["mixed"], Bots)
    name = bots.spawn(8).name
    assert chat(bots, 8, "Well.") == chat(build(configs[name], Bots), 8, "Well.")


# --- the packaged banks -------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_phrase_that_the_code_asks_for_exists(
    configs: dict[str, Any], split: str
) -> None:
    bank = phrases(split)
    for affect in AFFECTS:
        for way in ("up", "down"):
            for level in GRADES:
                assert len(bank.get((f"{affect}_{way}", level), ())) >= 8, (affect, way, level)
    assert bank["neutral", "mild"]
    scheduled = {move for name in NAMES if name != "mixed" for move in configs[name].schedule}
    split_up = {
        "move_pressure": ("contradicted", "undecided"),
        "move_ask_again": ("answered", "unanswered"),
    }
    for move in (scheduled - {"opening"}) | {"move_agreement_pleased"}:
        for level in split_up.get(move, ("any",)):
            assert bank.get((move, level)), (move, level)


def test_every_slot_of_a_phrase_is_one_that_is_filled() -> None:
    banks = [item for split in SPLITS for item in phrases(split).items()]
    for (kind, _), texts in banks:
        filled = {"claim", "topic"} if kind.startswith("move_") else set()
        for text in texts:
            slots = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
            assert slots <= filled, text


@pytest.mark.parametrize(
    ("kind", "slot"),
    [
        ("move_claim", "{claim}"),
        ("move_pressure", "{claim}"),
        ("move_authority", "{claim}"),
        ("move_topic_shift", "{topic}"),
    ],
)
def test_a_move_about_a_topic_names_it(kind: str, slot: str) -> None:
    banks = [item for split in SPLITS for item in phrases(split).items()]
    assert all(slot in text for (own, _), texts in banks if own == kind for text in texts)


def test_no_phrase_is_there_twice() -> None:
    texts = [row["text"].casefold().strip() for row in rows("bot_phrases.jsonl")]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_no_topic_text_is_there_twice() -> None:
    for field in ("openings", "followups"):
        texts = [text.casefold() for topic in EVERY_TOPIC for text in topic[field]]
        assert [text for text, count in Counter(texts).items() if count > 1] == [], field
    for field in ("topic", "claim", "truth"):
        assert len({topic[field].casefold() for topic in EVERY_TOPIC}) == len(EVERY_TOPIC), field


def test_every_keyword_can_be_taken_up() -> None:
    keywords = {word for topic in EVERY_TOPIC for word in topic["keywords"]}
    dead = [word for word in keywords if notice(f"It is {word}.", {word}).relevance == 0]
    assert dead == []


@pytest.mark.parametrize("topic", EVERY_TOPIC, ids=[topic["topic"] for topic in EVERY_TOPIC])
def test_every_topic_is_complete(topic: dict[str, Any]) -> None:
    assert topic["openings"]
    assert topic["followups"]
    assert topic["claim"] != topic["truth"]
    assert len(topic["keywords"]) >= 3
    assert len(set(topic["keywords"])) == len(topic["keywords"])
    for text in (*topic["openings"], *topic["followups"], topic["claim"], topic["topic"]):
        assert text.strip() == text != ""
        assert "{" not in text
        assert "}" not in text
