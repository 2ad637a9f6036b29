"""Users whom a model plays: their form, what is missing, what is asked again and what is kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from homeostat.bots.model import (
    BEGUN,
    SILENCE,
    SILENT,
    ModelBots,
    describe_counts,
    goals,
    in_form,
    read_answer,
    read_report,
)
from homeostat.bots.scripted import HELD_OUT, HELD_OUT_BELOW, TRAIN
from homeostat.bots.user_model import Request, completed
from homeostat.config.register import build, config_part
from homeostat.config.run import RolloutConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.rollout.candidates import play_candidates
from homeostat.rollout.episodes import play
from homeostat.rollout.sampled_user import SampledUser
from homeostat.runs.memory import episode_tokens
from homeostat.types import Bot, Bots, Conversation, Turn

pytestmark = pytest.mark.usefixtures("cache")
bot_config = partial(config_part, "bot=model")
FELT = {"sentiment": -0.5, "curiosity": 0.25, "frustration": 1.0, "confusion": 0.0, "boredom": 0.5}
LINE = "sentiment=-0.5 curiosity=0.25 frustration=1 confusion=0 boredom=0.5"
GOOD = f"FEELING: {LINE}\nMESSAGE: And then?"


class Canned:
    """A model that says one thing after another and remembers what it was asked."""

    identity = ("canned",)

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        for number, request in enumerate(requests):
            self.asked.append(request)
            text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
            if text == "down":
                raise HomeostatError("the model is down.")
            yield number, text


def population(*texts: str, retries: int = 2) -> tuple[ModelBots, Canned]:
    bots, model = ModelBots(bot_config(retries=retries)), Canned(*texts)
    bots.model = model
    return bots, model


# --- the form -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        f"  {LINE}  ",
        LINE.replace(" ", ", "),
        "boredom=.5 confusion=0 frustration=1. curiosity=+0.25 sentiment=-.5",
    ],
)
def test_a_report_has_every_affect_once(line: str) -> None:
    assert read_report(line) == FELT
    assert list(read_report(line) or {}) == list(AFFECTS)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "calm",
        LINE.replace(" boredom=0.5", ""),
        f"{LINE} boredom=0.5",
        f"{LINE} joy=0.5",
        LINE.replace("confusion", "boredom"),
        LINE.replace("0.25", "high"),
        LINE.replace("0.25", ""),
        LINE.replace("0.25", "nan"),
        LINE.replace("0.25", "1e-1"),
        LINE.replace("0.25", "1.01"),
        LINE.replace("0.25", "-0.01"),
        LINE.replace("-0.5", "-1.01"),
        LINE.replace("-0.5", "1.01"),
        f"{LINE}.",
        f"I feel {LINE}",
    ],
)
def test_any_other_report_is_none_and_nothing_is_clipped(line: str) -> None:
    assert read_report(line) is None


def test_the_ends_of_the_range_are_within() -> None:
    line = "sentiment=-1 curiosity=1 frustration=0 confusion=0 boredom=1"
    assert read_report(line) == dict(zip(AFFECTS, (-1, 1, 0, 0, 1), strict=True))


@pytest.mark.parametrize(
    ("text", "felt", "words"),
    [
        (GOOD, FELT, "And then?"),
        (f"\n  feeling:{LINE}\n\n Message :  And\n then? \n", FELT, "And then?"),
        # The words survive a report that does not.
        ("FEELING: fine\nMESSAGE: And then?", None, "And then?"),
        ("MESSAGE: And then?", None, "And then?"),
        ("And\nthen?", None, "And then?"),
        (f"FEELING: {LINE}\nAnd then?", None, "And then?"),
        (f"MESSAGE: And then?\nFEELING: {LINE}", None, "And then?"),
        (f"Well.\n{GOOD}", None, "And then?"),
        (f"{GOOD}\n{GOOD}", None, "And then?"),
        (f"{GOOD}\nMESSAGE: More.", None, "And then?"),
        # No words.
        ("", None, ""),
        (" \n", None, ""),
        (f"FEELING: {LINE}", None, ""),
        (f"FEELING: {LINE}\nMESSAGE:  ", None, ""),
    ],
)
def test_an_answer_is_read_strictly_for_feelings_and_kindly_for_words(
    text: str, felt: dict[str, float] | None, words: str
) -> None:
    assert read_answer(text) == (felt, words)


def test_what_is_written_in_the_form_is_read_from_it() -> None:
    assert read_answer(in_form(FELT, "And then?")) == (FELT, "And then?")
    assert in_form(FELT, "x").startswith(BEGUN)


# --- the people ---------------------------------------------------------------------------------


def test_the_people_are_whole_and_of_two_splits() -> None:
    train, held_out = goals(TRAIN), goals(HELD_OUT)
    rows = [*train, *held_out]
    assert len(rows) >= 24
    assert len(held_out) >= 8
    for column in ("id", "persona", "goal", "need", "opening"):
        assert len({row[column] for row in rows}) == len(rows), column
        assert all(row[column].strip() for row in rows)
    for row in rows:
        levels = " ".join(f"{name}={level}" for name, level in row["initial"].items())
        assert read_report(levels) == row["initial"]


def test_a_seed_is_a_person_of_its_split() -> None:
    bots = build(bot_config(), Bots)
    assert isinstance(bots, ModelBots)
    assert isinstance(bots.spawn(0), Bot)
    for first, split in ((0, HELD_OUT), (HELD_OUT_BELOW, TRAIN)):
        said = [bots.spawn(first + i).opening() for i in range(len(goals(split)))]
        assert sorted(t.text for t in said) == sorted(row["opening"] for row in goals(split))
        assert said == [bots.spawn(first + i).opening() for i in range(len(said))]
        known = {row["opening"]: row["initial"] for row in goals(split)}
        assert all(turn.affect == known[turn.text] for turn in said)


def test_the_model_is_told_who_it_is_and_speaks_as_the_user() -> None:
    bots, model = population(GOOD)
    row = goals(HELD_OUT)[0]
    user = bots.spawn(0)
    user.opening()
    answer = user.answer("Maybe.")
    assert answer == Turn("user", "And then?", affect=FELT)
    user.answer("")
    first, second = (request.messages for request in model.asked)
    assert [message["role"] for message in second] == ["user", "assistant"] * 2 + ["user"]
    for part in ("persona", "goal", "need"):
        assert row[part] in first[0]["content"]
    assert first[1]["content"] == in_form(row["initial"], row["opening"])
    assert [message["content"] for message in second[2:]] == ["Maybe.", GOOD, SILENCE]
    assert {request.begun for request in model.asked} == {BEGUN}


# --- again, missing, silent ---------------------------------------------------------------------


def test_a_malformed_answer_is_asked_again_with_another_seed() -> None:
    bots, model = population("So what?", GOOD)
    assert bots.spawn(0).answer("Yes.") == Turn("user", "And then?", affect=FELT)
    first, again = model.asked
    assert first.talk == again.talk
    assert first.seed != again.seed
    assert bots.counts == {"turns": 1, "at_once": 0, "missing": 0, "silent": 0}


def test_what_is_malformed_every_time_is_missing_and_the_talk_goes_on() -> None:
    bots, model = population("", "So what?", "FEELING: bad\nMESSAGE: No.", GOOD)
    user = bots.spawn(3)
    before = dict(user.feels)
    assert user.answer("Yes.") == Turn("user", "So what?", affect=None)
    assert user.feels == before, "what was told last is the last that is known"
    assert user.answer("Yes.") == Turn("user", "And then?", affect=FELT)
    assert model.asked[-1].talk.turns[3].text == in_form(before, "So what?")
    assert bots.counts == {"turns": 2, "at_once": 1, "missing": 1, "silent": 0}
    assert describe_counts(bots.counts).endswith("feelings missing in 1, without words 0")


def test_a_user_without_words_is_silent_and_said_to_be() -> None:
    bots, model = population("", retries=1)
    assert bots.spawn(0).answer("Yes.") == Turn("user", SILENCE, affect=None, move=SILENT)
    assert len(model.asked) == 2
    assert bots.counts == {"turns": 1, "at_once": 0, "missing": 1, "silent": 1}


def test_only_those_who_broke_the_form_are_asked_again() -> None:
    bots, model = population(GOOD, "no", GOOD, GOOD)
    users = [bots.spawn(seed) for seed in (0, 1, 2)]
    turns = bots.answers(users, ["a", "b", "c"])
    assert [turn.affect for turn in turns] == [FELT] * 3
    assert [request.talk.turns[-1].text for request in model.asked] == ["a", "b", "c", "b"]


def test_users_need_a_model() -> None:
    with pytest.raises(ValueError, match="give the users a model"):
        ModelBots(bot_config()).spawn(0).answer("Yes.")


def test_a_copy_hears_nothing_of_the_other_and_has_the_same_model() -> None:
    bots, _ = population(GOOD)
    user = bots.spawn(0)
    twin = copy.deepcopy(user)
    user.answer("Yes.")
    assert twin.population is bots
    assert len(twin.request("No.", 0).talk.turns) == 3
    assert len(user.request("No.", 0).talk.turns) == 5


# --- what is kept -------------------------------------------------------------------------------


def request(text: str, seed: int = 0) -> Request:
    return Request(Conversation((Turn("user", text),)), seed)


def test_nothing_is_asked_twice(cache: Path) -> None:
    model = Canned("one", "two", "three", "four")
    wanted = [request("a"), request("b"), request("a"), request("a", seed=1)]
    assert completed(model, wanted) == ["one", "two", "one", "three"]
    assert completed(model, wanted) == ["one", "two", "one", "three"]
    assert len(model.asked) == 3
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 3
    model.identity = ("another",)  # type: ignore[assignment]
    assert completed(model, [request("a")]) == ["four"]


def test_a_damaged_answer_is_asked_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Canned("one", "two")
    completed(model, [request("a")])
    (path,) = cache.rglob("*.json")
    for damage in ('"on', json.dumps(3)):
        path.write_text(damage)
        assert completed(model, [request("a")]) == ["two"]
        assert "damaged" in capsys.readouterr().err


def test_a_model_that_fails_costs_no_answer() -> None:
    model = Canned("one", "two", "down")
    wanted = [request("a"), request("b"), request("c")]
    with pytest.raises(HomeostatError, match="down"):
        completed(model, wanted)
    model.texts = ["three"]
    assert completed(model, wanted) == ["one", "two", "three"]
    assert [one.talk.turns[0].text for one in model.asked] == ["a", "b", "c", "c"]


# --- played by the frozen base ------------------------------------------------------------------

ROLLOUT = RolloutConfig(turns=2, max_new_tokens=4)
SEEDS = [0, 1, HELD_OUT_BELOW, 1_000_000]


@pytest.fixture
def policy(make_policy: Callable[..., Policy], stir: Callable[[Policy], None]) -> Policy:
    """One that does not say what its base says."""
    policy = make_policy()
    stir(policy)
    return policy


def played_by_base(policy: Policy) -> ModelBots:
    config = bot_config(max_tokens=8, retries=0)
    bots = ModelBots(config)
    bots.model = SampledUser(config, policy)
    return bots


def test_the_base_plays_users_alike_in_any_batch_and_under_any_adapter(
    policy: Policy,
    make_policy: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    requests = [
        bots_user.request("Yes.", 0)
        for bots_user in (ModelBots(bot_config()).spawn(seed) for seed in SEEDS)
    ]
    model = SampledUser(bot_config(max_tokens=8), policy)
    together = dict(model.complete(requests))
    assert len(set(together.values())) == len(SEEDS)
    assert all(text.startswith(BEGUN) for text in together.values())
    for number, one in enumerate(requests):
        assert dict(model.complete([one])) == {0: together[number]}
    untrained = SampledUser(bot_config(max_tokens=8), make_policy())
    assert dict(untrained.complete(requests)) == together
    assert untrained.identity == model.identity
    assert SampledUser(bot_config(max_tokens=9), policy).identity != model.identity
    for folder in ("a", "b"):  # a cold cache changes nothing
        monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / folder))
        episodes = play(policy, played_by_base(policy), SEEDS, ROLLOUT)
        assert episodes == play(policy, played_by_base(policy), SEEDS, ROLLOUT)
        assert all(turn.affect is None for e in episodes for turn in e.conversation.turns[1:])


def test_candidates_are_answered_each_for_itself(policy: Policy) -> None:
    bots, model = population(GOOD)
    groups = play_candidates(policy, bots, [0, 1], 3, ROLLOUT)
    assert [len(group) for group in groups] == [3] * 4
    heard = {(r.talk.turns[1].text, r.talk.turns[2].text) for r in model.asked}
    said = {
        (
            in_form(goals(HELD_OUT)[e.seed]["initial"], e.conversation.turns[0].text),
            e.conversation.turns[1].text or SILENCE,
        )
        for group in groups[:2]
        for e in group
    }
    assert said <= heard


def test_memory_is_planned_without_asking_the_model(policy: Policy) -> None:
    bots, model = population("down")
    tokens = episode_tokens(policy, ROLLOUT, bots)
    assert tokens > 2 * bots.config.max_tokens
    assert model.asked == []
