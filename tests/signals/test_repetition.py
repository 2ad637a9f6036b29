from __future__ import annotations

import random
import unicodedata

import pytest

from homeostat.signals.repetition import DENSE, repetition

NATURAL = """
Nobody told us that the ferry only ran on Thursdays, so we spent three nights in a guesthouse above
the harbour, listening to rain. My brother read aloud from a battered crime novel he had found in
the wardrobe, and I mended the strap of my rucksack with fishing line. On the second morning an old
woman knocked, holding a tray of warm rolls. She had noticed our light burning late, she said, and
had wondered whether we were ill. We were not ill, merely bored, which amused her greatly.

She turned out to have been the island's last lighthouse keeper. Over coffee she described storms
that threw pebbles against the lantern glass sixty feet up, the winter when supplies failed and they
boiled limpets for a fortnight, and a whale that rubbed itself along the slipway every August like
an enormous cat. Machines do the work now. A technician visits twice a year, changes a fuse, eats
his sandwich, and leaves before the tide turns. She did not seem bitter about this. Somebody ought
to sleep at night, she remarked, and it might as well be the keeper.

What stayed with me, oddly, was her method for remembering. Each evening she used to write a single
line in a ledger: the wind, a ship, what had been funny. Forty years of lines filled eleven volumes,
and the museum on the mainland had asked for them. She refused, as several neighbours were still
alive and would recognise themselves. When the last of them is buried, she promised, the curator can
come and fetch the lot; until then the books stay under her bed, beside the good boots.

The boat arrived a day early, as things do once you have stopped waiting. We ran down the hill with
our laces undone. Halfway across the strait my brother discovered that he had carried off the novel
by mistake, with forty pages left to go. He finished it before we docked, then refused to say who
had done it. I have begun a ledger of my own since then, though so far it mostly concerns trains,
dentists and the price of butter. Yesterday's entry says only: sun, no ships, a dog wearing a hat.
Perhaps that is enough. Reading it back this morning, in the grey kitchen, I could smell bread again
and hear gravel crunch below the window, and for a moment the whole of that wet week stood upright.
"""
SHORT = [
    "That depends on what you want to do with it afterwards, really.",
    "I'm not sure I follow. Do you mean the second chapter or the appendix?",
    "It was a good day and a long day, and in the end it was a day like any other day.",
    "Water boils at a lower temperature in the mountains, because the air up there presses less. "
    "That is why pasta takes longer: the water is boiling, but it is not as hot.",
    "Sorry, sorry! I said the red one, not the blue one. The red one is in the drawer.",
]
CODE = """
def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)
"""
LIST = """
1. Wash the rice until the water runs clear.
2. Soak it for half an hour.
3. Bring stock to the boil.
4. Add saffron, salt and a bay leaf.
5. Simmer gently, lid on, for twelve minutes.
"""
DENSE_TEXTS = [
    "昨天下午我去图书馆还书，发现门口排着很长的队。原来是一位老作家在签名，大家都很兴奋。",  # noqa: RUF001
    "駅前の小さなパン屋は朝七時に開きます。焼きたての匂いに誘われて、つい寄り道してしまいました。",
    "เมื่อวานฉันไปตลาดกับแม่ ซื้อผักสดกับปลาสองตัว แล้วกลับมาทำแกงส้มกินกันตอนเย็น",
]
DENSE_LOOPS = ["我不知道该说什么。", "そうですね、", "ไม่เป็นไรครับ "]


def slow_repetition(text: str) -> float:
    """The definition, sign by sign: every stretch and every cycle there is, nothing clever."""
    signs = " ".join(text.casefold().split())
    n = len(signs)
    letters = [
        3 if ord(s) > 127 and unicodedata.name(s, "").startswith(DENSE) else 1 for s in signs
    ]
    copied = set()
    for start in range(n):
        end = start
        while end < n and sum(letters[start:end]) < 24:
            end += 1
        whole = sum(letters[start:end]) >= 24
        if whole and any(signs[i : i + end - start] == signs[start:end] for i in range(start)):
            copied |= set(range(start, end))
    for start in range(n):
        for period in range(1, n):
            end = start + period
            while end < n and signs[end] == signs[end - period]:
                end += 1
            if end - start >= 3 * period and sum(letters[start:end]) >= 8:
                copied |= set(range(start + period, end))
    return len(copied) / n if n else 1.0


def loop(words: str, length: int) -> str:
    return (f"{words} " * (length // len(words) + 1))[:length]


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_empty_text_is_1(text: str) -> None:
    assert repetition(text) == 1.0


@pytest.mark.parametrize("text", ["a", "no", "yes, yes", "Unbelievable.", "ha ha", "bye bye"])
def test_short_replies_are_0(text: str) -> None:
    assert repetition(text) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no", 0.0),  # 2.67 rounds: the last one lacks its blank
        ("no no no no", 8 / 11),  # all but the first round of "no "
        ("aaaaaaaa", 7 / 8),
        ("aaaaaaa", 0.0),  # seven letters are no cycle yet
        ("abcdabcdabcd", 8 / 12),
        ("abcdabcdabc", 0.0),  # 2.75 rounds
        ("abcdefghijklmnopqrstuvwx" * 2, 0.5),  # 24 letters come again
        ("abcdefghijklmnopqrstuvw-abcdefghijklmnopqrstuvw", 0.0),  # 23 letters do not count
        ("我" * 3, 2 / 3),  # nine letters' worth
        ("一二三四五六七八" * 2, 0.5),  # eight signs are as good as 24 letters
        ("一二三四五六七-一二三四五六七", 0.0),
    ],
)
def test_by_hand(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "words", ["no", "I do not know.", "the sun is warm and the sea is", "a" * 7 + " " + "b" * 40]
)
def test_loops_of_any_period_are_high(words: str) -> None:
    assert repetition(loop(words, 500)) > 0.85


def test_loop_of_long_rounds_is_high() -> None:
    """Twenty words, ten times: no n-gram has a large share, yet nine tenths are copied."""
    sentence = " ".join(NATURAL.split()[:20])
    assert repetition(" ".join([sentence] * 10)) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("words", [20, 50, 100, 200, 350])
@pytest.mark.parametrize("round_", ["I see.", "and then we went on and"])
def test_half_a_loop_is_one_half_whatever_the_length(words: int, round_: str) -> None:
    told = " ".join(NATURAL.split()[:words])
    found = repetition(f"{told} {loop(round_, len(told))}")
    assert found == pytest.approx(0.5, abs=0.03 + len(round_) / len(told) / 2)


@pytest.mark.parametrize("words", [10, 25, 50, 100, 200, 300, 400])
def test_natural_text_is_near_0(words: int) -> None:
    assert len(NATURAL.split()) >= 400
    assert repetition(" ".join(NATURAL.split()[:words])) < 0.05


@pytest.mark.parametrize("text", SHORT)
def test_natural_replies_are_near_0(text: str) -> None:
    assert repetition(text) < 0.05


@pytest.mark.parametrize("text", [CODE, LIST, *DENSE_TEXTS])
def test_code_lists_and_scripts_without_spaces_are_0(text: str) -> None:
    assert repetition(text) == 0.0


@pytest.mark.parametrize("text", [CODE, LIST, *DENSE_TEXTS])
def test_saying_it_all_three_times_is_two_thirds(text: str) -> None:
    assert repetition(f"{text}\n" * 3) == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize("words", DENSE_LOOPS)
def test_loops_without_spaces_are_high(words: str) -> None:
    assert repetition(words * 8) > 0.8
    assert repetition(words * 3) > 0.6


def test_case_and_whitespace_do_not_matter() -> None:
    text = "So it goes. so it goes. Well, who knows? SO IT GOES."
    for changed in (text.upper(), text.replace(" ", " \n\t "), f"\n {text}  "):
        assert repetition(changed) == repetition(text)
    assert repetition("Go on!\nGO ON! go  on! Go on!") > 0.7


def random_text(chance: random.Random) -> str:
    """New signs, copies of what was said, and cycles, of two kinds of script."""
    alphabet = chance.choice(["ab", "ab cdefgh", "一二", "ab一 "])
    text = ""
    while len(text) < chance.randint(1, 60):
        piece = "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 12)))
        start = chance.randrange(len(text) + 1)
        text += chance.choice([piece, piece * chance.randint(2, 4), text[start : start + 30]])
    return text


def test_definition_on_random_texts() -> None:
    chance = random.Random(0)
    texts = [random_text(chance) for _ in range(150)]
    found = [repetition(text) for text in texts]
    assert found == pytest.approx([slow_repetition(text) for text in texts])
    assert sum(0.1 < value < 0.9 for value in found) > 50
