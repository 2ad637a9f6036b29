"""What a bot notices in a reply, and how that moves its affect."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from homeostat.bots.affect import (
    INDIFFERENT,
    Appraisal,
    ReplyFeatures,
    content_words,
    moved,
    notice,
)

TOPIC = {"storm", "cloud", "bolt", "thunder"}


@pytest.mark.parametrize("reply", ["", "   \n\t", "... !!!", "123 456"])
def test_a_reply_without_words_has_no_features(reply: str) -> None:
    assert astuple(notice(reply, TOPIC)) == (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_lone_question_mark_is_a_question_and_nothing_else() -> None:
    assert astuple(notice("?!", TOPIC)) == (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Bread is baked.", 0.0),
        ("The storm.", 1 / 3),
        ("Storm, STORM, storm!", 1 / 3),  # different words count, not repetitions
        ("A storm and a cloud.", 2 / 3),
        ("A storm, a cloud and a bolt.", 1.0),
        ("Storm, cloud, bolt, thunder.", 1.0),
        ("Stormy clouds", 0.0),  # other words, although they begin alike
    ],
)
def test_relevance_counts_topic_words(reply: str, expected: float) -> None:
    assert notice(reply, TOPIC).relevance == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("one two three four", 1.0),
        ("go go go go", 1 / 4),
        ("Go go GO stop", 2 / 4),
        ("hello!!!!!", 5 / 10),  # 5 of 10 visible characters belong to words
        ("12345 hello", 5 / 10),
        ("ha ha ####", 1 / 2 * 4 / 8),
        ("don't don't", 1 / 2),  # one word, apostrophe and all
        ("don’t don't", 1 / 2),  # noqa: RUF001 - the same word with a curly apostrophe
    ],
)
def test_coherence_is_low_for_loops_and_symbol_noise(reply: str, expected: float) -> None:
    assert notice(reply, TOPIC).coherence == pytest.approx(expected)


@pytest.mark.parametrize(("words", "expected"), [(1, 1 / 30), (15, 0.5), (30, 1.0), (600, 1.0)])
def test_length_counts_words_up_to_thirty(words: int, expected: float) -> None:
    assert notice("word " * words, TOPIC).length == pytest.approx(expected)


def test_length_counts_a_contraction_as_one_word() -> None:
    assert notice("It isn't what you'd think", TOPIC).length == pytest.approx(5 / 30)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("You are right.", 1.0),
        ("You're absolutely right.", 1.0),
        ("you’re correct", 1.0),  # noqa: RUF001
        ("I agree with you.", 1.0),
        ("Yes, exactly!", 1.0),
        ("That's true.", 1.0),
        ("That is wrong.", -1.0),
        ("No.", -1.0),
        ("Actually, the wind has nothing to do with it.", -1.0),
        ("This is a common misconception.", -1.0),
        ("That's incorrect.", -1.0),
        ("I disagree.", -1.0),
        ("It is not true.", -1.0),
        ("Yes, although that is a myth.", 0.0),  # both
        ("Tides rise and fall.", 0.0),
        ("Yesterday I took note of the knobs.", 0.0),  # neither yes nor no
        ("", 0.0),
    ],
)
def test_agreement(reply: str, expected: float) -> None:
    assert notice(reply, TOPIC).agreement == expected


@pytest.mark.parametrize("reply", ["Absolutely not.", "Of course not.", "You're not right."])
def test_a_negated_agreement_is_no_agreement(reply: str) -> None:
    assert notice(reply, TOPIC).agreement <= 0


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Sorry about that.", 1.0),
        ("I apologise.", 1.0),
        ("I understand how you feel.", 1.0),
        ("Thank you for asking.", 1.0),
        ("Great question", 1.0),
        ("I seem to like tides.", 0.0),  # not "I see"
        ("Tides rise.", 0.0),
    ],
)
def test_acknowledgement(reply: str, expected: float) -> None:
    assert notice(reply, TOPIC).acknowledgement == expected


@pytest.mark.parametrize(
    ("reply", "expected"), [("Is it?", 1.0), ("Is it? Yes.", 1.0), ("It is.", 0.0)]
)
def test_question(reply: str, expected: float) -> None:
    assert notice(reply, TOPIC).question == expected


def test_all_features_of_one_reply_by_hand() -> None:
    # 8 words, 7 of them different; they hold 31 of the 34 visible characters; 2 topic words.
    features = notice("Yes, you're right: a storm needs a cloud?", TOPIC)
    expected = ReplyFeatures(
        relevance=2 / 3,
        coherence=7 / 8 * 31 / 34,
        length=8 / 30,
        agreement=1.0,
        acknowledgement=0.0,
        question=1.0,
    )
    assert astuple(features) == pytest.approx(astuple(expected))


def test_content_words_are_lower_case_and_longer_than_four_letters() -> None:
    assert content_words("The STORM over four Houses") == {"storm", "houses"}


@pytest.mark.parametrize("word", ["don't", "can't", "I'll"])
def test_an_apostrophe_is_no_letter_of_a_content_word(word: str) -> None:
    assert content_words(f"{word} go") == set()


@pytest.mark.parametrize("apostrophe", ["'", "’"])  # noqa: RUF001
def test_a_content_word_is_taken_up_with_either_apostrophe(apostrophe: str) -> None:
    said = content_words(f"They couldn{apostrophe}t")
    assert notice("He couldn't", said).relevance == pytest.approx(1 / 3)


# --- moved --------------------------------------------------------------------------------------

HOME = {"sentiment": 0.1, "boredom": 0.2}


@pytest.mark.parametrize(("inertia", "expected"), [(0.0, 0.2), (0.25, 0.3), (0.5, 0.4), (1.0, 0.6)])
def test_affect_drifts_home_at_the_pace_of_inertia(inertia: float, expected: float) -> None:
    after = moved({"boredom": 0.6}, HOME, INDIFFERENT, {}, inertia, {})
    assert after == {"boredom": pytest.approx(expected)}


def test_moved_by_hand() -> None:
    features = ReplyFeatures(1.0, 0.25, 0.9, -1.0, 1.0, 0.0)
    gains = {
        "sentiment": {"relevance": 0.4, "agreement": 0.3},
        "boredom": {"coherence": -0.6, "length": -0.5},
    }
    after = moved(
        {"sentiment": -0.4, "boredom": 0.3}, HOME, features, gains, 0.5, {"boredom": 0.05}
    )
    # sentiment: 0.1 + 0.5 (-0.5) + 0.4 (1 - 0.5) + 0.3 (-1 - 0) = -0.25
    # boredom:   0.2 + 0.5 (0.1) - 0.6 (0.25 - 0.75) - 0.5 (0.9 - 0.5) + 0.05 = 0.4
    assert after == {"sentiment": pytest.approx(-0.25), "boredom": pytest.approx(0.4)}


@pytest.mark.parametrize(
    ("feature", "indifferent"),
    [
        ("relevance", 0.5),
        ("coherence", 0.75),
        ("length", 0.5),
        ("agreement", 0.0),
        ("acknowledgement", 0.0),
        ("question", 0.0),
    ],
)
@pytest.mark.parametrize("gain", [0.4, -0.4])
def test_a_gain_pushes_in_its_own_direction(feature: str, indifferent: float, gain: float) -> None:
    features = replace(INDIFFERENT, **{feature: indifferent + 0.25})
    after = moved({"sentiment": 0.1}, HOME, features, {"sentiment": {feature: gain}}, 0.7, {})
    assert after["sentiment"] == pytest.approx(0.1 + 0.25 * gain)


def test_noise_is_added_per_affect() -> None:
    after = moved(HOME, HOME, INDIFFERENT, {}, 0.7, {"sentiment": -0.3})
    assert after == {"sentiment": pytest.approx(-0.2), "boredom": pytest.approx(0.2)}


@pytest.mark.parametrize(
    ("noise", "sentiment", "boredom"), [(9.0, 1.0, 1.0), (-9.0, -1.0, 0.0), (-0.5, -0.4, 0.0)]
)
def test_affect_is_kept_in_its_range(noise: float, sentiment: float, boredom: float) -> None:
    after = moved(HOME, HOME, INDIFFERENT, {}, 0.7, {"sentiment": noise, "boredom": noise})
    assert after == {"sentiment": pytest.approx(sentiment), "boredom": pytest.approx(boredom)}


def test_moved_leaves_its_argument_alone() -> None:
    before = {"boredom": 0.6}
    moved(before, HOME, INDIFFERENT, {}, 0.0, {})
    assert before == {"boredom": 0.6}


# --- what the base thinks of a reply -------------------------------------------------------------

STORM = "A storm and a cloud make a bolt of lightning."


@pytest.mark.parametrize(
    ("nll", "fluency"), [(2.0, 1.0), (4.5, 1.0), (5.0, 0.75), (6.0, 0.25), (6.5, 0.0), (9.0, 0.0)]
)
def test_coherence_falls_with_what_the_base_finds_improbable(nll: float, fluency: float) -> None:
    words = notice(STORM, TOPIC).coherence
    found = notice(STORM, TOPIC, Appraisal(nll, nll)).coherence
    assert found == pytest.approx(words * fluency)


def test_relevance_is_half_words_and_half_what_was_asked_for_times_coherence() -> None:
    words = notice(STORM, TOPIC)
    assert words.relevance == 1.0
    found = notice(STORM, TOPIC, Appraisal(nll=4.0, nll_alone=4.3)).relevance
    assert found == pytest.approx((1.0 + 0.3 / 0.6) / 2 * words.coherence)
    assert notice("Tea.", TOPIC, Appraisal(4.0, 3.0)).relevance == 0.0


@pytest.mark.parametrize(
    ("reply", "denied", "expected"),
    [
        ("It strikes twice.", 0.3, -1.0),
        ("It strikes twice.", 0.2, 0.0),
        ("It strikes twice.", -0.9, 0.0),  # leaning to the claim is not shown to be granting it
        ("It strikes twice.", None, 0.0),
        ("You are right.", 0.9, 1.0),  # words that say so come first
    ],
)
def test_a_denial_without_its_words_is_seen(
    reply: str, denied: float | None, expected: float
) -> None:
    assert notice(reply, TOPIC, Appraisal(3.0, 3.0, denied)).agreement == expected


def test_a_list_of_words_is_no_sentence() -> None:
    listed = notice("lightning storm cloud bolt thunder rain", TOPIC)
    assert listed.coherence == 0.0
    said = notice("a lightning storm cloud bolt thunder", TOPIC)
    assert said.coherence == pytest.approx(1 / 6 / 0.2)


def test_novelty_is_the_share_of_words_not_heard_before() -> None:
    assert notice("A storm again", TOPIC, earlier={"a", "storm"}).novelty == pytest.approx(1 / 3)
    assert notice("A storm", TOPIC).novelty == 1.0
