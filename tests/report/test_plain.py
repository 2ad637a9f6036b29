"""Text from elsewhere shows its controls instead of using them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from homeostat.report.console import Console
from homeostat.report.pages import read_template
from homeostat.report.plain import in_markdown, visible

HOSTILE = "\x1b[31mred\x07 \u202egnp.exe <script>alert(1)</script> a|b `c`\x9b"


def test_controls_are_symbols_and_the_rest_is_as_it_was() -> None:
    assert visible("fülle 日本 🙂\n\tnew") == "fülle 日本 🙂\n\tnew"
    assert visible("\x1b[31m\r\x7f\u202e\u2066") == "␛[31m␍<U+007F><U+202E><U+2066>"


def test_markdown_is_one_line_without_html_code_or_cells() -> None:
    said = in_markdown(f"{HOSTILE}\nsecond")
    assert "\n" not in said
    assert "<" not in said
    assert "\x1b" not in said
    assert r"a\|b \`c\`" in said
    assert in_markdown('it\'s "so"') == 'it\'s "so"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](http://b)", r"[a]\(http://b)"),
        ("![a](b)", r"![a]\(b)"),
        ("[a][b] [b]: c", r"[a]\[b] [b]\: c"),
        ("a\\|b", r"a\\\|b"),  # the backslash is one, and the cell goes on
        ("[+0.1, +0.2] (n = 3)", "[+0.1, +0.2] (n = 3)"),
    ],
)
def test_markdown_has_no_link_and_no_escape_of_an_escape(text: str, said: str) -> None:
    assert in_markdown(text) == said


def test_the_terminal_gets_no_escape_sequence() -> None:
    out = io.StringIO()
    Console(RichConsole(file=out, width=200)).say(HOSTILE)
    assert "\x1b" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert "␛[31mred" in out.getvalue()


def test_a_page_shows_controls_and_keeps_its_own_markup() -> None:
    template = read_template("comparison.html.j2", title_of=str, figure_of=str, breakable=str)
    engine = template.environment
    page = engine.from_string("{{ text }} {{ text | upper }} {{ 3 }}").render(text=HOSTILE)
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
