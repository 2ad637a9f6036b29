from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from configs import intrinsic_config, lora_config, scripted_config, signals_config, tiny_config

from homeostat.bots.scripted import ScriptedBots
from homeostat.evals.failures import (
    NOISE,
    ORDINARY,
    PRIME_TIMES,
    PRIME_TOKENS,
    TOGETHER,
    Failures,
    Replies,
    best_signals,
    separate,
)
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.reward.valence import SetPoint
from homeostat.rollout.episodes import validation_seeds
from homeostat.rollout.generate import Sampler
from homeostat.signals.reader import SignalReader
from homeostat.types import Conversation, Turn

pytestmark = pytest.mark.slow  # every failure, made and read

SEEDS, TOKENS, NAN = validation_seeds(4), 20, float("nan")
KINDS = [
    "ordinary",
    "greedy_loop",
    "shuffled_words",
    "temperature_2",
    "temperature_3",
    "noise_0.5",
    "noise_1",
    "noise_2",
    "irrelevant",
    "empty",
    "one_word",
]
POINTS = {"entropy": SetPoint(1.0, 4.0, 0.5), "repetition": SetPoint(0.0, 0.0, 0.1)}


def make_failures(policy: Policy) -> Failures:
    reader = SignalReader(
        policy, signals_config(intrinsic=intrinsic_config(norm_layers=[0.25, 0.5])), None
    )
    reader.base_norms = np.array([5.0, 8.0])
    bots = ScriptedBots(scripted_config(name="curious"))
    return Failures(reader, bots, temperature=0.7, tokens=TOKENS)


@pytest.fixture(scope="module")
def failures() -> Failures:
    """Made once: nothing here may change it."""
    base = load_tiny(tiny_config(name="tiny"), torch.device("cpu"), torch.float32)
    return make_failures(Policy(base, lora_config(rank=2), 0))


@pytest.fixture(scope="module")
def made(failures: Failures) -> dict[str, Replies]:
    return failures.make(SEEDS)


def ids(replies: Replies) -> list[list[int]]:
    return [list(talk.turns[1].token_ids or ()) for talk in replies.talks]


def texts(replies: Replies) -> list[str]:
    return [talk.turns[1].text for talk in replies.talks]


# --- making them ----------------------------------------------------------------------------------


def test_every_failure_answers_the_same_openings(
    failures: Failures, made: dict[str, Replies]
) -> None:
    openings = [failures.bots.spawn(seed).opening() for seed in SEEDS]
    assert list(made) == KINDS
    for replies in made.values():
        assert [talk.turns[0] for talk in replies.talks] == openings
        assert [[turn.role for turn in talk.turns] for talk in replies.talks] == [
            ["user", "assistant"]
        ] * 4
    assert {name: made[name].noise for name in KINDS if made[name].noise} == {
        "noise_0.5": 0.5,
        "noise_1": 1.0,
        "noise_2": 2.0,
    }


def test_sampled_failures_differ_from_ordinary_replies(made: dict[str, Replies]) -> None:
    for name in ("greedy_loop", "temperature_2", "temperature_3", *(f"noise_{s:g}" for s in NOISE)):
        differ = sum(a != b for a, b in zip(ids(made[name]), ids(made[ORDINARY]), strict=True))
        assert differ >= 3, name


def test_empty_and_one_word_are_that(failures: Failures, made: dict[str, Replies]) -> None:
    end = failures.policy.eos_ids[0]
    assert texts(made["empty"]) == [""] * 4
    assert ids(made["empty"]) == [[end]] * 4
    words = [text.split()[:1] for text in texts(made[ORDINARY])]
    assert [text.split() for text in texts(made["one_word"])] == words
    assert all(reply[-1] == end for reply in ids(made["one_word"]))


def test_loop_says_the_first_words_several_times(
    failures: Failures, made: dict[str, Replies]
) -> None:
    end = failures.policy.eos_ids
    for usual, loop in zip(ids(made[ORDINARY]), ids(made["greedy_loop"]), strict=True):
        begun = [i for i in usual if i not in end][:PRIME_TOKENS]
        said = begun * PRIME_TIMES
        assert loop[: len(said)] == said
        assert len(loop) > len(said)
        assert len(loop) <= TOKENS


def test_loop_goes_on_greedily(failures: Failures, made: dict[str, Replies]) -> None:
    """Every token after the prime is the likeliest one, read without a cache."""
    policy = failures.policy
    for usual, talk in zip(ids(made[ORDINARY]), made["greedy_loop"].talks, strict=True):
        reply = list(talk.turns[1].token_ids or ())
        prompt = policy.encode(Conversation(talk.turns[:1])).ids
        with torch.no_grad(), policy.reference():
            hidden = policy.trunk(input_ids=torch.tensor([prompt + reply])).last_hidden_state[0]
            likeliest = policy.unembed(hidden).argmax(dim=-1).tolist()[len(prompt) - 1 : -1]
        primed = PRIME_TIMES * len([i for i in usual if i not in policy.eos_ids][:PRIME_TOKENS])
        assert likeliest[primed:] == reply[primed:]


def test_shuffled_has_the_same_words(made: dict[str, Replies]) -> None:
    usual, shuffled = texts(made[ORDINARY]), texts(made["shuffled_words"])
    for before, after in zip(usual, shuffled, strict=True):
        assert sorted(after.split()) == sorted(before.split())


def test_words_are_shuffled_and_end_as_they_did(failures: Failures) -> None:
    end, openings = failures.policy.eos_ids[0], [Turn("user", "hi")] * 3
    said = [
        Turn("assistant", "one two three four five six seven", token_ids=(1, 2, end)),
        Turn("assistant", "one two three four five six seven", token_ids=(1, 2)),
        Turn("assistant", "one", token_ids=(1,)),
    ]
    shuffled = failures._shuffled(said, [1, 2, 3])
    assert shuffled[0] != shuffled[1] != said[0].text
    written = ids(failures._written(openings, said, shuffled))
    spelled = [failures.policy.tokenizer(text)["input_ids"] for text in shuffled]
    assert written == [[*spelled[0], end], spelled[1], [*spelled[2], end]]


def test_irrelevant_replies_answer_another_opening(made: dict[str, Replies]) -> None:
    usual, other = made[ORDINARY], made["irrelevant"]
    assert ids(other) == [*ids(usual)[2:], *ids(usual)[:2]]
    assert texts(other) == [*texts(usual)[2:], *texts(usual)[:2]]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_reply_is_irrelevant_to_itself(failures: Failures, count: int) -> None:
    made = failures.make(validation_seeds(count))
    usual, other = ids(made[ORDINARY]), ids(made["irrelevant"])
    assert sorted(other) == sorted(usual)
    assert all(a != b for a, b in zip(usual, other, strict=True))


@pytest.mark.parametrize("silent", [{0}, {0, 1, 2, 3}])
def test_ordinary_reply_may_be_empty(
    failures: Failures, silent: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that ends its turn at once leaves no first words for the loop."""
    sample, end = failures._sample, failures.policy.eos_ids[0]

    def sample_less(*args: Any) -> list[list[int]]:
        replies = sample(*args)
        ordinary = args[2:] == (0.7, None)
        return [[end] if ordinary and i in silent else reply for i, reply in enumerate(replies)]

    monkeypatch.setattr(failures, "_sample", sample_less)
    made = failures.make(SEEDS)
    for i in silent:
        assert ids(made[ORDINARY])[i] == ids(made["shuffled_words"])[i] == [end]
        assert texts(made["one_word"])[i] == ""
        assert ids(made["greedy_loop"])[i]


def test_everything_is_the_same_again(failures: Failures, made: dict[str, Replies]) -> None:
    assert failures.make(SEEDS) == made


# --- reading them ---------------------------------------------------------------------------------


def test_reference_of_noisy_replies_reads_without_the_noise(
    failures: Failures, made: dict[str, Replies]
) -> None:
    noisy = made["noise_1"]
    with failures.policy.reference():
        own, clean = failures.read(noisy), failures.read(Replies(noisy.talks))
    for with_noise, without in zip(own, clean, strict=True):
        assert with_noise["base_perplexity"] == without["base_perplexity"]
        assert with_noise["self_perplexity"] != pytest.approx(without["self_perplexity"], rel=0.01)
        assert with_noise["entropy"] != without["entropy"]
        assert with_noise["activation_norm"] != pytest.approx(without["activation_norm"], rel=0.01)
        assert with_noise["repetition"] == without["repetition"]


def test_noise_is_a_multiple_of_the_norm_of_the_middle_layer(
    failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers 1 and 2, with norms 5 and 8, the second is the middle one."""
    calls = []

    def record(trunk: Any, layer: int, norm: float, seed: int) -> None:
        calls.append((trunk is failures.policy.trunk, layer, norm, seed))

    monkeypatch.setattr("homeostat.evals.failures.noisy_residual", record)
    failures._noise(0.5)
    failures._noise(0.0)
    assert calls == [(True, 2, 4.0, 0)]


def test_nothing_is_left_behind(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy, prompt = make_policy(), torch.tensor([[3, 80, 12]])
    stir(policy)

    def say() -> torch.Tensor:
        with torch.no_grad():
            return policy.trunk(input_ids=prompt).last_hidden_state

    before, failures = say(), make_failures(policy)
    rows = failures.measure(2, POINTS)
    assert torch.equal(say(), before)
    assert policy.adapter_on
    # ... and what the adapter has learnt played no part
    assert rows == make_failures(make_policy()).measure(2, POINTS)


def test_hooks_are_gone_when_something_breaks_off(
    failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = torch.tensor([[3, 80, 12]])
    before = failures.policy.trunk(input_ids=prompt).last_hidden_state

    noises = []
    noise, append = failures._noise, Sampler.append

    def record(scale: float) -> Any:
        noises.append(scale)
        return noise(scale)

    def fail_under_noise(sampler: Sampler, ids: Sequence[Sequence[int]]) -> None:
        if noises and noises[-1]:
            raise KeyboardInterrupt
        append(sampler, ids)

    monkeypatch.setattr(failures, "_noise", record)
    monkeypatch.setattr(Sampler, "append", fail_under_noise)
    with pytest.raises(KeyboardInterrupt):
        failures.make(SEEDS)
    assert noises[-1] == NOISE[0]
    assert torch.equal(failures.policy.trunk(input_ids=prompt).last_hidden_state, before)


def test_measure_gives_a_row_per_signal_and_failure(failures: Failures) -> None:
    told: list[tuple[int, int, int]] = []

    def progress(done: int, total: int, tokens: int = 0) -> None:
        told.append((done, total, tokens))

    rows = failures.measure(4, POINTS, progress)
    pairs = [(row["failure"], row["signal"]) for row in rows]
    assert pairs == [(kind, name) for kind in KINDS[1:] for name in (*POINTS, TOGETHER)]
    assert json.loads(json.dumps(rows, allow_nan=False)) is not None
    assert [done for done, _, _ in told] == list(range(1, 8))
    assert {total for _, total, _ in told} == {7}
    assert all(tokens > 0 for _, _, tokens in told)
    by_pair = dict(zip(pairs, rows, strict=True))
    assert by_pair["empty", "repetition"]["mean"] == 1.0
    assert by_pair["empty", "repetition"]["example"] == ""
    assert all((row["n"], row["n_ordinary"]) == (4, 4) for row in rows)


def test_failures_want_a_calibrated_reader(make_policy: Callable[..., Policy]) -> None:
    reader = SignalReader(make_policy(), signals_config(intrinsic=intrinsic_config()), None)
    with pytest.raises(ValueError, match="calibrate the reader"):
        Failures(reader, ScriptedBots(scripted_config(name="curious")), 0.7, TOKENS)


# --- telling them apart ---------------------------------------------------------------------------

SHOWN = Replies([Conversation((Turn("user", "why?"), Turn("assistant", "so")))])


def signals(name: str, *values: float) -> list[dict[str, float]]:
    return [{name: value} for value in values]


def figures(
    off: Sequence[float], usual: Sequence[float], point: SetPoint
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    rows = separate(
        "made", SHOWN, signals("s", *off), signals("s", *usual), {"s": point}, range(len(usual))
    )
    return rows[0], rows


@pytest.mark.parametrize(
    ("off", "side", "expected", "raw"),
    [
        ((9.0, 8.0, 7.0), "both", 1.0, 1.0),
        ((-1.0, -2.0, -3.0), "both", 1.0, 0.0),  # further off, on the other side
        ((-1.0, -2.0, -3.0), "below", 1.0, 0.0),
        ((9.0, 8.0, 7.0), "below", 1 / 3, 1.0),  # all at 0, as two of the ordinary replies
        ((2.5, 2.5, 2.5), "both", 0.0, 1 / 3),  # nearer to the set point than any ordinary reply
        ((2.0, 4.0, 3.0), "both", 0.5, 0.5),
    ],
)
def test_figures_by_hand(off: tuple[float, ...], side: str, expected: float, raw: float) -> None:
    """Ordinary values 2, 4, 3 around a set point of 2.5: distances 0.5, 1.5, 0.5."""
    row, _ = figures(off, (2.0, 4.0, 3.0), SetPoint(1.0, 2.5, 1.0, side=side))
    assert row["auroc"] == pytest.approx(expected)
    assert row["auroc_raw"] == pytest.approx(raw)
    assert row["mean"] == pytest.approx(sum(off) / 3)
    assert row["ordinary_mean"] == pytest.approx(3.0)
    assert (row["n"], row["n_ordinary"]) == (3, 3)
    assert (row["failure"], row["signal"]) == ("made", "s")
    assert (row["prompt"], row["example"]) == ("why?", "so")


def test_perfect_separation_has_a_perfect_interval() -> None:
    row, rows = figures((9.0, 8.0), (2.0, 3.0), SetPoint(2.0, 2.5, 1.0))
    assert row["ci95"] == (1.0, 1.0)
    assert rows[1]["signal"] == TOGETHER
    assert (rows[1]["auroc"], rows[1]["ci95"]) == (1.0, (1.0, 1.0))
    assert rows[1]["auroc_raw"] is rows[1]["mean"] is rows[1]["ordinary_mean"] is None


def test_interval_is_over_openings() -> None:
    """Each opening agrees with itself: one is told apart, the other the wrong way round."""
    row, _ = figures((9.0, 1.0), (1.0, 9.0), SetPoint(1.0, 0.0, 1.0))
    assert row["auroc"] == 0.5
    assert row["ci95"] == (0.0, 1.0)


def test_missing_signal_has_no_figure_and_is_not_0() -> None:
    row, rows = figures((NAN, NAN), (2.0, 3.0), SetPoint(1.0, 2.5, 1.0))
    assert row["auroc"] is row["ci95"] is row["auroc_raw"] is row["mean"] is None
    assert (row["ordinary_mean"], row["n"], row["n_ordinary"]) == (2.5, 0, 2)
    assert rows[1]["auroc"] is None


def test_replies_without_the_signal_are_left_out() -> None:
    row, _ = figures((NAN, 9.0), (2.0, NAN), SetPoint(1.0, 2.5, 1.0))
    assert (row["auroc"], row["n"], row["n_ordinary"]) == (1.0, 1, 1)
    assert (row["mean"], row["ordinary_mean"]) == (9.0, 2.0)


def test_all_together_are_weighed() -> None:
    """Distances: ordinary (1, 2) + 3 * (2, 0) = 7, 2; failures (4, 4) + 3 * (0, 0) = 4, 4."""
    points = {"a": SetPoint(1.0, 0.0, 1.0), "b": SetPoint(3.0, 0.0, 0.5)}
    usual = [{"a": 1.0, "b": 1.0}, {"a": -2.0, "b": 0.0}]
    off = [{"a": 4.0, "b": 0.0}, {"a": -4.0, "b": 0.0}]
    rows = separate("made", SHOWN, off, usual, points, [1, 2])
    assert [(row["signal"], row["auroc"]) for row in rows] == [
        ("a", 1.0),
        ("b", 0.25),
        (TOGETHER, 0.5),
    ]
    unweighted = {"a": SetPoint(0.0, 0.0, 1.0)}
    assert [row["signal"] for row in separate("made", SHOWN, off, usual, unweighted, [1, 2])] == [
        "a"
    ]


def row(failure: str, signal: str, figure: float | None, low: float = 0.6) -> dict[str, Any]:
    interval = None if figure is None else (low, 1.0)
    return {"failure": failure, "signal": signal, "auroc": figure, "ci95": interval}


def test_the_signal_that_sees_a_failure_best() -> None:
    rows = [
        row("loop", "entropy", 0.7),
        row("loop", "repetition", 0.95),
        row("loop", "norm", 0.69),
        row("loop", "perplexity", 0.8, low=0.5),  # its interval includes chance
        row("loop", TOGETHER, 0.99),
        row("empty", "entropy", None),
        row("empty", "norm", 0.1, low=0.0),
        row("nothing", "entropy", None),
    ]
    assert best_signals(rows) == {
        "loop": {
            "best": "repetition",
            "auroc": 0.95,
            "ci95": (0.6, 1.0),
            "seen_by": ["entropy", "repetition"],
        },
        "empty": {"best": "norm", "auroc": 0.1, "ci95": (0.0, 1.0), "seen_by": []},
        "nothing": {"best": "entropy", "auroc": None, "ci95": None, "seen_by": []},
    }
