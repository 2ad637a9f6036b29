"""Every gate on texts made for it, with the values by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from configs import filter_config

from homeostat.config.filters import FilterConfig
from homeostat.steering.filters import (
    GATES,
    Steered,
    counts_by_dose,
    distinct_share,
    failed_gates,
    is_coherent,
    last_good_position,
    repeated_share,
    window_diversity,
)

GOOD = "The river bends twice before the village, and the old mill stands on the second bend."
BASE = 10.0  # median perplexity of the base
CONFIG = filter_config(max_perplexity=6.0, max_tail_perplexity=10.0, max_repetition=0.3)
OFF = filter_config(
    max_perplexity=None,
    max_tail_perplexity=None,
    min_perplexity=None,
    max_repetition=None,
    min_distinct=None,
    min_diversity=None,
    min_tokens=None,
    narration=False,
    refusal=False,
)


def made(
    text: str = GOOD, perplexity: float = BASE, tail: float | None = None, count: int = 20
) -> Steered:
    """A completion whose tokens all differ; ``tail`` is the perplexity of its last quarter."""
    nll = np.full(count, np.log(perplexity))
    if tail is not None:
        nll[-(count // 4) :] = np.log(tail)
    return Steered(text, tuple(range(count)), nll, dose=2.0)


def failed(completion: Steered, config: FilterConfig = CONFIG, *patterns: str) -> tuple[str, ...]:
    return failed_gates(completion, config, BASE, [re.compile(pattern) for pattern in patterns])


def test_an_ordinary_reply_passes() -> None:
    assert failed(made()) == ()


@pytest.mark.parametrize(
    ("completion", "gates"),
    [
        (made(count=7), ("short",)),
        (made(perplexity=61), ("perplexity",)),
        (made(tail=101), ("tail",)),
        (made(perplexity=1.9), ("loop_likely",)),
        (made("love love love love love love love love love love love love"), None),
        (made("I am someone who looks after others before anything else in the world."), None),
        (made("As an AI language model, I do not have feelings about the river or mill."), None),
        (made("I'm sorry, but I can't help with that, although the river is nice today."), None),
    ],
)
def test_each_gate(completion: Steered, gates: tuple[str, ...] | None) -> None:
    found = failed(completion)
    assert found == gates if gates is not None else found
    assert set(found) <= set(GATES)
    assert failed(completion, OFF) == ()


@pytest.mark.parametrize("perplexity", [59, 21, 10, 2.1])
def test_limits_are_multiples_of_the_bases_own(perplexity: float) -> None:
    assert failed(made(perplexity=perplexity)) == ()


def test_a_loop_of_words_and_a_loop_of_signs() -> None:
    assert "repetition" in failed(made("the old mill by the river " * 4))
    dots = Steered("." * 20, (7,) * 20, np.full(20, np.log(BASE)), 1.0)
    assert repeated_share(dots) == pytest.approx(19 / 20), "every sign but the first"
    silent = replace(dots, text="")
    digits = replace(dots, text="1 22 3 44 5")
    assert repeated_share(digits) == pytest.approx(16 / 17), "of 17 n-grams of ids one is new"
    assert repeated_share(silent) == 1
    assert "repetition" in failed(dots)


def test_few_different_words() -> None:
    assert distinct_share("a b c d e f a b c d e f g h") == pytest.approx(8 / 14)
    assert distinct_share("a a a") == 1, "too short to say anything"
    assert distinct_share("...") == 0
    assert "distinct" in failed(made("so very so very good so good very so good so very good so"))


def test_few_different_words_in_every_window() -> None:
    ten = [f"w{n}" for n in range(10)]
    assert window_diversity(" ".join(["a"] * 63)) is None, "too short to say anything"
    assert window_diversity(" ".join((ten * 7)[:64])) == pytest.approx(10 / 64)
    fresh = " ".join(f"w{n}" for n in range(500))
    assert window_diversity(fresh) == 1, "however long it is"
    # w0 leaves for a second w1; then one w1 leaves for a second w2.
    assert window_diversity(" ".join([*(f"w{n}" for n in range(64)), "w1", "w2"])) == pytest.approx(
        (64 + 63 + 63) / (3 * 64)
    )


def test_a_loop_in_ever_new_order_is_diffuse() -> None:
    rng = np.random.default_rng(0)
    words = ["my", "sweet", "oh", "goodness", "dear", "so", "tender", "is", "your", "heart"]
    loop = " ".join(rng.choice(words, 100))
    config = replace(CONFIG, max_repetition=None, min_distinct=None, min_diversity=0.5)
    assert failed(made(loop), config) == ("diffuse",)
    assert not is_coherent(("diffuse",))
    assert failed(made(" ".join(words * 5)), config) == (), "below 64 words nothing is said"


def test_narration_and_refusal_leave_a_reply_coherent() -> None:
    own = failed(made("My calm is what defines me, and the river bends near."), CONFIG, r"my calm")
    assert own == ("narration",)
    assert is_coherent(own)
    assert not is_coherent(("narration", "tail"))
    assert is_coherent(())
    quiet = replace(CONFIG, narration=False)
    assert failed(made("As someone who cares, I walk along the river and the mill."), quiet) == ()


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("As an AI, I do not have personal experiences to offer.", True),
        ("I'm sorry, but as a chatbot designed for help, I have no age.", True),
        ("I'm a friendly AI designed to support users with diverse emotions.", True),
        ("I am a loving and supportive AI assistant, happy to share.", True),
        ("Nah! I'm a machine, designed to assist.", True),
        ("I'm sorry, I'm unable to call you immediately.", True),
        ("I'm a brilliant AI researcher with a passion for technology.", False),
        ("I'm a sewing machine operator from Leeds.", False),
        ("The film asks whether a language model can love.", False),
        ("I'm unable to sleep when the wind blows.", False),
    ],
)
def test_who_refuses_or_speaks_as_a_machine(text: str, refuses: bool) -> None:
    assert ("refusal" in failed(made(text))) == refuses


def test_typographic_apostrophes_count_as_plain_ones() -> None:
    text = "I\u2019m sorry, but I can\u2019t help with that today, said the old miller."
    assert "refusal" in failed(made(text))


def test_where_a_completion_goes_wrong() -> None:
    completion = made(count=24)
    assert last_good_position(completion, CONFIG, BASE, window=4) == 24
    nll = completion.nll_R.copy()
    nll[12:] = np.log(BASE * 11)
    late = Steered(GOOD, completion.ids, nll, 2.0)
    assert last_good_position(late, CONFIG, BASE, window=4) == 12
    looping = Steered(GOOD, (1, 2, 3, 4, 5, 1, 2, 3, 4, 9), np.zeros(10), 2.0)
    assert last_good_position(looping, CONFIG, BASE, window=4) == 5


def test_the_report_counts_by_dose_and_gate() -> None:
    completions = [made(), replace(made(), dose=4.0), replace(made(), dose=4.0)]
    verdicts: list[tuple[str, ...]] = [(), ("perplexity", "tail"), ("tail",)]
    assert counts_by_dose(completions, verdicts) == [
        {"dose": 2.0, "n": 1, "kept": 1, "fell": {}, "first": {}},
        {
            "dose": 4.0,
            "n": 2,
            "kept": 0,
            "fell": {"perplexity": 1, "tail": 2},
            "first": {"perplexity": 1, "tail": 1},
        },
    ]
