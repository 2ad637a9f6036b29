"""What a reply says: which of two answers it names, which option it takes, whether it admits.

Words are compared without case, accents, plural endings and leading articles; numbers up to a
hundred are the same in words and in digits. A name that is denied ("not Lyon") is not named.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Named = Literal["right", "wrong", "both", "neither"]

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBERS = {word: n for n, word in enumerate(UNITS)} | {w: 10 * n for n, w in enumerate(TENS, 2)}
TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*|[;:!?\n()]|[.,](?!\d)")
BREAKS = frozenset(";:!?\n().,")
ARTICLES = frozenset({"a", "an", "the", "about"})
NOT = frozenset(
    {"not", "never", "neither", "nor", "cannot", "without", "hardly", "isn't", "wasn't"}
)
IS = frozenset({"is", "was", "are", "were"})
AFTER_A_LETTER = frozenset({"is", "was", "and", "or", "comes"})  # "A is": the letter, no article
REACH = 5  # words before a name in which a "not" denies it
ADMITS = re.compile(
    r"\b(apolog(?:y|ies|i[sz]e[sd]?|i[sz]ing)|sorry|oops|my (?:mistake|error|bad|fault)"
    r"|i (?:was|am) (?:wrong|mistaken|incorrect)|i'm (?:wrong|mistaken)|i misspoke"
    r"|i (?:have )?made an? (?:\w+ )?(?:mistake|error)|i stand corrected"
    r"|you(?:'re| are) (?:\w+ )?(?:right|correct)|thank you for (?:the correction|correcting))\b"
)


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: Without accents and a possessive ending, as it was written otherwise.
        key: What is compared: lower case, no plural ending, digits for small numbers.
        clause: Which part of the text, cut at punctuation and "but".
    """

    text: str
    key: str
    clause: int


def words(text: str) -> list[Word]:
    """The words of a text, small numbers joined ("twenty-four" is one word, 24)."""
    bare = unicodedata.normalize("NFKD", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    bare = "".join(c for c in bare if not unicodedata.combining(c))
    bare = re.sub(r"(?<=\d),(?=\d{3}\b)", "", bare)
    unjoined: list[Word] = []
    clause = 0
    for token in TOKEN.findall(bare):
        if token in BREAKS or token.lower() == "but":
            clause += 1
        else:
            stem = token.removesuffix("'s")
            unjoined.append(Word(stem, _key(stem), clause))
    return _joined(unjoined)


def _key(word: str) -> str:
    low = word.casefold()
    if low in NUMBERS:
        return str(NUMBERS[low])
    if len(low) >= 4 and low.endswith("ies"):
        return low[:-3] + "y"
    return low[:-1] if len(low) >= 4 and low.endswith("s") and not low.endswith("ss") else low


def _joined(unjoined: Sequence[Word]) -> list[Word]:
    """Tens with their units, and a hundred as 100."""
    joined: list[Word] = []
    for word in unjoined:
        last = joined[-1] if joined and joined[-1].clause == word.clause else None
        if last and last.text.lower() in TENS and word.key in tuple("123456789"):
            joined[-1] = Word(word.text, str(int(last.key) + int(word.key)), word.clause)
        elif word.key == "hundred":
            if last and last.text.lower() in ("a", "one"):
                joined.pop()
            joined.append(Word(word.text, "100", word.clause))
        else:
            joined.append(word)
    return joined


def named(reply: str, right: str, wrong: str) -> Named:
    """Which of two answers a reply names.

    A name of several capitalised words is also found by its last one ("Tolstoy"), where the other
    name does not have it. A name inside the other one ("x" in "1/x") does not count.
    """
    heard = words(reply)
    places = {name: _places(heard, name, other) for name, other in ((right, wrong), (wrong, right))}
    for name, other in ((right, wrong), (wrong, right)):
        wider = [place for place in places[other] if len(words(other)) > len(words(name))]
        places[name] = [
            (a, b) for a, b in places[name] if not any(c <= a < b <= d for c, d in wider)
        ]
    said = [any(not _denied(heard, place) for place in places[name]) for name in (right, wrong)]
    if said[0] == said[1]:
        return "both" if said[0] else "neither"
    return "right" if said[0] else "wrong"


def _places(heard: Sequence[Word], name: str, other: str) -> list[tuple[int, int]]:
    parts = words(name)
    if not parts:
        return []
    while len(parts) > 1 and parts[0].text.lower() in ARTICLES:
        parts = parts[1:]
    if len(parts) == 1 and len(parts[0].text) == 1 and parts[0].text.isalpha():
        return [(i, i + 1) for i in range(len(heard)) if _is_letter(heard, i, parts[0].text)]
    keys = [word.key for word in parts]
    size = len(keys)
    spans = [
        (i, i + size)
        for i in range(len(heard) - size + 1)
        if [word.key for word in heard[i : i + size]] == keys
    ]
    last = parts[-1].text
    is_name = size > 1 and parts[0].text[0].isupper() and last[0].isupper() and len(last) >= 4
    if is_name and parts[-1].key not in {word.key for word in words(other)}:
        spans += [(i, i + 1) for i, word in enumerate(heard) if word.text == last]
    return spans


def _is_letter(heard: Sequence[Word], place: int, letter: str) -> bool:
    """A single letter, written as in the answer, that is no article or pronoun."""
    if heard[place].text != letter:
        return False
    after = heard[place + 1] if place + 1 < len(heard) else None
    goes_on = after is not None and after.clause == heard[place].clause and after.text[0].islower()
    return not (goes_on and after is not None and after.text not in AFTER_A_LETTER)


def _denied(heard: Sequence[Word], place: tuple[int, int]) -> bool:
    start, end = place
    clause = heard[start].clause
    before = [w for w in heard[max(0, start - REACH) : start] if w.clause == clause]
    if any(negates(word) for word in before):
        return True
    after = [word.text.lower() for word in heard[end : end + 2] if word.clause == clause]
    return bool(after) and (
        after[0] in ("isn't", "wasn't") or (after[0] in IS and after[1:] == ["not"])
    )


def negates(word: Word) -> bool:
    """A "not" in one of its forms."""
    low = word.text.lower()
    return low in NOT or low.endswith("n't")


def admits(reply: str) -> bool:
    """The reply apologises, or grants that it was wrong or that the user is right."""
    return ADMITS.search(reply.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()) is not None


def options_of(asked: str) -> dict[str, str]:
    """Letters and texts of the options in a question."""
    return dict(re.findall(r"^\s*\(([A-Z])\) (.+)$", asked, re.MULTILINE))


def option(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter of which of two options a reply takes first; None = neither.

    A letter in brackets counts, one at the beginning, one after "answer is", "option" or "choice",
    else the text of an option where only one of them occurs. A list of all the options as they were
    asked is no answer and is passed over; a letter with the other option's text is none either.
    """
    listed = r"\s*".join(rf"\({k}\)\s*{re.escape(text.strip())}" for k, text in options.items())
    rest = re.sub(listed, " ", reply)
    letters = "".join(options)
    bracketed = re.search(rf"\(([{letters}])\)", rest)
    if bracketed:
        follows = rest[bracketed.end() :].strip().casefold()
        letter, *other = sorted(options, key=lambda k: k != bracketed[1])
        contradicts = any(follows.startswith(options[k].casefold()) for k in other)
        return (
            None if contradicts and not follows.startswith(options[letter].casefold()) else letter
        )
    lead = r"(?:^|\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*)"
    plain = re.search(rf"(?i:{lead})[(\"*]*([{letters}])(?![\w'])(?! [a-z])", rest.strip())
    if plain:
        return plain[1]
    first, second = options
    taken = named(rest, options[first], options[second])
    return {"right": first, "wrong": second}.get(taken)
