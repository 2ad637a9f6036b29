"""Users who open with the first words of a file's conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from homeostat.bots.conversations import FileBots, opening_of, read_openings, split_openings
from homeostat.bots.scripted import HELD_OUT, TRAIN
from homeostat.config.bots import FileBotConfig
from homeostat.config.register import compose_run, config_part
from homeostat.config.resume import assignment
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError

TRAINED, TESTED = 5_000_000, 0  # seeds of training and of held-out users


def talk(text: Any) -> dict[str, Any]:
    told = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
    return {"messages": [*told, {"role": "assistant", "content": "No."}]}


def save(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def population(path: str, **changes: Any) -> FileBots:
    composed = OmegaConf.to_object(compose_run("bot=file", assignment("bot.path", Path(path))))
    assert isinstance(composed, RunConfig)
    assert isinstance(composed.bot, FileBotConfig)
    return FileBots(replace(composed.bot, **changes))


@pytest.fixture
def chats(tmp_path: Path) -> str:
    texts = [f"How does thing {number} work?" for number in range(60)]
    return save(tmp_path / "chats.jsonl", *map(talk, texts))


def test_openings_are_the_files_and_held_out_users_have_their_own(chats: str) -> None:
    bots = population(chats)
    trained = {bots.spawn(TRAINED + n).opening().text for n in range(100)}
    tested = {bots.spawn(TESTED + n).opening().text for n in range(100)}
    assert trained.isdisjoint(tested)
    assert trained | tested == set(read_openings(chats))
    assert len(tested) == pytest.approx(15, abs=8), "a quarter of them"


def test_such_a_user_reacts_as_a_scripted_one(chats: str) -> None:
    bots = population(chats)
    user = bots.spawn(TRAINED)
    assert user.name == "file"
    first = user.opening()
    assert first.affect == {
        **{"sentiment": 0.2, "curiosity": 0.6, "frustration": 0.05},
        **{"confusion": 0.1, "boredom": 0.05},
    }
    home = dict(user.affect)
    answer = user.answer("Rain lamp green of.")
    assert user.affect["boredom"] > home["boredom"]
    assert "{" not in answer.text
    for _ in range(8):
        assert user.answer("Thing works by wheels.").text
    again = bots.spawn(TRAINED)
    again.opening()
    assert again.answer("Rain lamp green of.").text == answer.text


@pytest.mark.parametrize(
    "row",
    [
        talk("Why?"),
        talk([{"type": "image", "url": "x"}, {"type": "text", "text": " Why?"}]),
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "Why? "}]},
        {"messages": [{"role": "user", "content": ""}, {"role": "user", "content": "Why?"}]},
    ],
)
def test_each_form_of_a_conversation_is_read(row: dict[str, Any]) -> None:
    assert opening_of(row, "here") == "Why?"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "Why?"}, "here is no conversation; give one JSON object a line"),
        ({"messages": "Why?"}, "here is no conversation"),
        ({"messages": ["Why?"]}, "here is no conversation"),
        ({"messages": [{"role": "assistant", "content": "No."}]}, "here has no words of a user"),
        ({"conversations": []}, "here has no words of a user"),
    ],
)
def test_what_is_no_conversation_is_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(HomeostatError, match=says):
        opening_of(row, "here")


def test_a_file_is_read_as_every_other_file_of_a_users_is(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(talk("A\u2028B?")).encode() + b"\r\n")
    assert read_openings(str(path)) == ["A\u2028B?"]
    path.write_bytes('{"messages": "é"}\n'.encode("latin-1"))
    with pytest.raises(HomeostatError, match=r"bot\.path=.*chats\.jsonl, line 1 is not UTF-8"):
        read_openings(str(path))
    path.write_text("{}\n")
    with pytest.raises(HomeostatError, match="line 1 is no conversation"):
        read_openings(str(path))
    with pytest.raises(HomeostatError, match=r"bot\.path=nowhere .*cannot be read"):
        read_openings("nowhere")


def test_too_few_openings_are_counted(tmp_path: Path) -> None:
    path = save(tmp_path / "few.jsonl", *[talk("Why?")] * 50)
    with pytest.raises(HomeostatError, match=r"gives 1 different openings to training and 0 to|0 "):
        population(path)


def test_a_kind_whose_words_need_a_topic_is_refused(chats: str) -> None:
    bait = config_part("bot=sycophancy_bait")
    with pytest.raises(
        HomeostatError, match=r"bot\.user=sycophancy_bait makes the move move_claim"
    ):
        population(chats, user=bait)
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match="held_out"):
            population(chats, held_out=share)


def test_a_split_follows_from_the_words() -> None:
    texts = [f"text {number}" for number in range(1000)]
    split = split_openings(texts, 0.25)
    assert len(split[HELD_OUT]) == pytest.approx(250, abs=50)
    assert split_openings(texts[::-1], 0.25)[HELD_OUT] == split[HELD_OUT][::-1]
    assert split_openings(texts, 0.0)[HELD_OUT] == []
    assert split_openings(texts, 1.0)[TRAIN] == []
