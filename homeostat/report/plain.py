"""What is read as text: numbers in one form everywhere, and text from elsewhere made harmless.

Names of arms and runs, statuses, and what models and bots have written may hold signs that steer a
terminal or turn the order of what stands beside them. They are shown as symbols.
"""

from __future__ import annotations

import html
import re

# Control characters but tab and newline; and those that end lines or set the direction of text.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SYMBOLS = 0x2400  # where Unicode begins its pictures of the first 32 control characters


def visible(text: str) -> str:
    """The text with every control character as a symbol, or by its number."""
    return CONTROLS.sub(_symbol, text)


def _symbol(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(SYMBOLS + code) if code < 0x20 else f"<U+{code:04X}>"


def in_markdown(text: str) -> str:
    """A text on one line of Markdown, without HTML, code, links or the end of a cell in it."""
    line = " ".join(visible(text).split())
    # A backslash before what is escaped would escape the escape; after ] these make a link of it.
    return re.sub(r"[\\|`]|(?<=\])[(\[:]", r"\\\g<0>", html.escape(line, quote=False))


def duration(seconds: float) -> str:
    """Minutes and seconds, such as 2:05; hours in front where needed."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float | None, sign: bool = False) -> str:
    """A number for a table; an em dash for a missing one."""
    if value is None:
        return "—"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def interval(bounds: tuple[float, float] | list[float] | None) -> str:
    """A 95% interval for a table; an em dash for a missing one."""
    return "—" if bounds is None else f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]"
