"""What is printed: literal text, plain lines where there is no terminal, tables that fit."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console as RichConsole

from homeostat.report.console import Console, largest_terms
from homeostat.report.plain import duration, interval, number
from homeostat.signals.probing.validation import ProbeReport
from homeostat.types import Estimate

MARKUP = [
    "[bold]x[/bold]",
    "[red]x",
    "x[/]",
    "[/bold]",
    "[link=http://example.com]x[/link]",
    "\\[bold]x",
    "x\\",
    "[x] [1] [] [[y]]",
    "wait for it :smile: and :warning:",
]
ESTIMATES = {
    "valence": Estimate(-2.0, -1.5, 0.5, (0.25, 0.75), 32),
    "term/entropy": Estimate(-0.25, -0.111, 0.139, (0.1, 0.2), 32),
    "coherence/base_perplexity": Estimate(12.25, None, None, None, 0),
    "signal/frustration": Estimate(0.5, 0.3, -0.2, (-0.3, -0.1), 32),
}


def console(width: int = 100, terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    rich = RichConsole(
        file=stream,
        width=width,
        force_terminal=terminal,
        highlight=False,
        soft_wrap=False,
        color_system="truecolor" if terminal else None,
        legacy_windows=False,
    )
    return Console(rich), stream


def visible(text: str) -> str:
    """Text without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# --- literal text -------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", MARKUP)
def test_text_with_markup_is_printed_literally(text: str, terminal: bool) -> None:
    out, stream = console(terminal=terminal)
    out.say(text)
    assert visible(stream.getvalue()) == f" 0:00 {text}\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("title", MARKUP)
def test_a_title_with_markup_is_printed_literally(title: str, terminal: bool) -> None:
    out, stream = console(terminal=terminal)
    with out.section(title) as progress:
        progress(1, 2)
    assert f" 0:00 {title}: 0:00\n" in visible(stream.getvalue())


def test_a_metric_with_markup_is_printed_literally() -> None:
    out, stream = console()
    out.comparison({"own/[bold]x[/bold]": Estimate(1.0, 2.0, 1.0, (0.5, 1.5), 4)})
    assert "own/[bold]x[/bold]" in stream.getvalue()


def test_a_long_line_is_not_broken() -> None:
    out, stream = console(width=20)
    out.say("word " * 30 + "end")
    assert stream.getvalue() == " 0:00 " + "word " * 30 + "end\n"


# --- stages -------------------------------------------------------------------------------------


def test_a_stage_is_two_plain_lines_without_a_terminal() -> None:
    out, stream = console()
    with out.section("held-out episodes") as progress:
        progress(1, 4, 700)
        progress(4, 4, 800)
    first, last = stream.getvalue().splitlines()
    assert first == " 0:00 held-out episodes ..."
    assert re.fullmatch(r" 0:00 held-out episodes: 0:00, 1,500 tokens, \d+ tok/s", last)


def test_a_stage_without_tokens_has_no_rate() -> None:
    out, stream = console()
    with out.section("report"):
        pass
    assert stream.getvalue().splitlines()[-1] == " 0:00 report: 0:00"


def test_output_is_plain_without_a_terminal() -> None:
    out, stream = console()
    out.say("hello")
    with out.section("episodes") as progress:
        progress(1, 2, 10)
    out.update(1, 4, {"reward/valence": -1.0}, 2.0)
    out.comparison(ESTIMATES)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_a_live_stage_and_one_line_at_its_end() -> None:
    out, stream = console(terminal=True)
    with out.section("episodes") as progress:
        progress(1, 2, 400)
        progress(2, 2, 600)
    assert "\x1b" in stream.getvalue()
    assert re.search(
        r" 0:00 episodes: 0:00, 1,000 tokens, \d+ tok/s\n$", visible(stream.getvalue())
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_within_a_stage_is_not_swallowed(terminal: bool) -> None:
    out, stream = console(terminal=terminal)
    with pytest.raises(RuntimeError, match="disk"), out.section("episodes"):
        raise RuntimeError("disk")
    assert "episodes: 0:00" not in visible(stream.getvalue())


# --- updates ------------------------------------------------------------------------------------


def test_an_update_says_how_far_it_is() -> None:
    out, stream = console()
    metrics = {
        "reward/valence": -1.25,
        "policy/kl_nats_per_token": 0.0125,
        "optim/grad_norm": 3.0,
        "rollout/response_tokens": 1200.0,
        "signal/entropy_mean": 9.0,
    }
    out.update(1, 4, metrics, seconds=10.0)
    line = stream.getvalue()
    assert "update 1/4  valence -1.250  KL +0.013  grad +3.000  120 reply tok/s" in line
    assert line.endswith("0:30 left\n")


def test_the_time_left_follows_the_mean_pace() -> None:
    out, stream = console()
    for step, seconds in ((1, 10.0), (2, 30.0), (3, 50.0)):
        out.update(step, 4, {}, seconds)
    # Means 10, 20 and 30 s, with 3, 2 and 1 updates to go.
    left = [line.rpartition("  ")[2] for line in stream.getvalue().splitlines()]
    assert left == ["0:30 left", "0:40 left", "0:30 left"]


def test_an_update_names_the_largest_summands_of_valence() -> None:
    out, stream = console()
    terms = {"boredom": -0.1, "entropy": -1.25, "sentiment": 0.0, "repetition": -0.5}
    out.update(1, 1, {f"reward/term/{name}": value for name, value in terms.items()}, 1.0)
    assert (
        stream.getvalue()
        .splitlines()[1]
        .endswith("valence = entropy -1.25, repetition -0.50, rest -0.10")
    )


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({}, {}),
        ({"a": -1.0}, {"a": -1.0}),
        ({"a": -1.0, "b": -2.0}, {"b": -2.0, "a": -1.0}),
        ({"a": -1.0, "b": 0.5, "c": -2.0, "d": -0.25}, {"c": -2.0, "a": -1.0, "rest": 0.25}),
    ],
)
def test_largest_terms(terms: dict[str, float], expected: dict[str, float]) -> None:
    metrics = {f"reward/term/{name}": value for name, value in terms.items()}
    found = largest_terms({"reward/total": -9.0} | metrics)
    assert list(found.items()) == list(expected.items())


def test_an_update_leaves_out_what_was_not_measured() -> None:
    out, stream = console()
    out.update(4, 4, {"optim/grad_norm": 1.0}, 1.0)
    assert "grad +1.000" in stream.getvalue()
    assert "valence" not in stream.getvalue()
    assert "KL" not in stream.getvalue()
    assert "0:00 left" in stream.getvalue()


# --- the table ----------------------------------------------------------------------------------


def cells(stream: io.StringIO, start: str) -> list[str]:
    """The cells of the table's row that begins with this text."""
    rows = [re.split(r"\s*[│┃|]\s*", line.strip()) for line in stream.getvalue().splitlines()]
    return next(row[1:-1] for row in rows if len(row) > 2 and row[1].startswith(start))


def test_a_wide_table_has_every_column() -> None:
    out, stream = console(width=100)
    out.comparison(ESTIMATES)
    assert cells(stream, "metric") == ["metric", "before", "after", "difference", "95% interval"]
    assert cells(stream, "valence") == ["valence", "-2.000", "-1.500", "+0.500", "[+0.250, +0.750]"]
    assert cells(stream, "coherence/base_p")[1:] == ["12.250", "—", "—", "—"]
    assert cells(stream, "signal/frus")[3:] == ["-0.200", "[-0.300, -0.100]"]


def test_the_summands_of_valence_stand_right_below_it() -> None:
    out, stream = console()
    shuffled = ["signal/frustration", "term/entropy", "coherence/base_perplexity", "valence"]
    out.comparison(
        {name: ESTIMATES[name] for name in shuffled} | {"own/mine": ESTIMATES["valence"]}
    )
    rows = re.findall(r"^│ (\S+) ", stream.getvalue(), re.MULTILINE)
    assert rows == ["valence", "term/entropy", "own/mine", *shuffled[0::2]]
    assert cells(stream, "term/entropy")[1:4] == ["-0.250", "-0.111", "+0.139"]


@pytest.mark.parametrize("width", [40, 50, 75])
def test_a_narrow_table_keeps_the_difference(width: int) -> None:
    out, stream = console(width=width)
    out.comparison(ESTIMATES)
    assert max(map(len, stream.getvalue().splitlines())) <= width
    assert "before" not in stream.getvalue()
    assert "difference" in stream.getvalue()
    for difference in ("+0.500", "-0.200"):
        assert difference in stream.getvalue()


def test_a_narrow_table_keeps_large_differences_whole() -> None:
    out, stream = console(width=40)
    large = Estimate(10.0, 133.456, 123.456, (-1111.111, 1234.567), 8)
    out.comparison({"coherence/base_perplexity": large})
    assert "+123.456" in stream.getvalue()


@pytest.mark.parametrize("width", [1, 10, 20])
def test_a_tiny_window_does_not_crash(width: int) -> None:
    out, stream = console(width=width)
    out.comparison(ESTIMATES)
    out.update(1, 2, {"reward/valence": -1.0}, 1.0)
    assert "update 1/2" in stream.getvalue()


# --- what a run without training found ----------------------------------------------------------


def probe_report(**changes: Any) -> ProbeReport:
    return replace(
        ProbeReport(
            layer=1,
            pooling="mean",
            regularisation=0.1,
            validation_auroc={},
            auroc=0.9,
            ci95=(0.85, 0.9375),
            n=20,
            n_positive=5,
            brier=0.1,
            brier_base_rate=0.2,
            reliability=[],
            controls={"text_only": 0.75},
            heldout_auroc=None,
            heldout=None,
            verdict="trusted",
        ),
        **changes,
    )


REPORTS = {
    "sentiment": probe_report(),
    "[bold]x[/bold]": probe_report(auroc=0.5, ci95=None, verdict="unusable"),
    "boredom": probe_report(verdict="weak", controls={"text_only": None}),
}
FAILURES = {
    "greedy_loop": {"best": "repetition", "auroc": 0.95, "seen_by": ["repetition"]},
    "empty": {"best": "entropy", "auroc": 0.5, "seen_by": []},
    "[red]one": {"best": "entropy", "auroc": None, "seen_by": []},
}


def test_a_wide_table_of_verdicts_has_every_column() -> None:
    out, stream = console(width=100)
    out.probe_verdicts(REPORTS)
    assert cells(stream, "affect") == ["affect", "AUROC", "verdict", "95% interval", "words alone"]
    assert cells(stream, "senti") == ["sentiment", "0.900", "trusted", "[0.850, 0.938]", "0.750"]
    assert cells(stream, "[bold") == ["[bold]x[/bold]", "0.500", "unusable", "—", "0.750"]
    assert cells(stream, "bored") == ["boredom", "0.900", "weak", "[0.850, 0.938]", "—"]


@pytest.mark.parametrize("width", [40, 75])
def test_a_narrow_table_of_verdicts_keeps_the_verdict(width: int) -> None:
    out, stream = console(width=width)
    out.probe_verdicts(REPORTS)
    assert max(map(len, stream.getvalue().splitlines())) <= width
    assert "words alone" not in stream.getvalue()
    for verdict in ("trusted", "weak", "unusable"):
        assert verdict in stream.getvalue()


def test_failures_that_no_signal_sees_are_marked() -> None:
    out, stream = console()
    out.failures(FAILURES)
    assert cells(stream, "greedy") == ["greedy_loop", "repetition", "0.950"]
    assert cells(stream, "empty") == ["empty", "entropy", "0.500 not seen"]
    assert cells(stream, "[red]") == ["[red]one", "entropy", "— not seen"]


@pytest.mark.parametrize("width", [1, 20, 40])
def test_tables_of_a_validation_survive_a_small_window(width: int) -> None:
    out, stream = console(width=width)
    out.probe_verdicts(REPORTS)
    out.failures(FAILURES)
    assert stream.getvalue()


@pytest.mark.parametrize("width", [24, 100])
def test_the_memory_table_has_every_part_and_the_limit(width: int) -> None:
    out, stream = console(width=width)
    out.memory({"weights": 2_000_000_000, "kv_cache": 10_000_000}, 2_500_000_000, 12e9)
    assert cells(stream, "weights") == ["weights", "2.00"]
    assert cells(stream, "kv cache") == ["kv cache", "0.01"]
    assert cells(stream, "at once") == ["at once", "2.50"]
    assert cells(stream, "limit") == ["limit", "12.00"]


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (5, "0:05"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (125, "2:05"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
        (90061, "25:01:01"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(float(seconds)) == expected


@pytest.mark.parametrize(
    ("value", "sign", "expected"),
    [
        (0.12345, False, "0.123"),
        (-2.0, False, "-2.000"),
        (0.12345, True, "+0.123"),
        (-0.5, True, "-0.500"),
        (0.0, True, "+0.000"),
        (None, False, "—"),
        (None, True, "—"),
    ],
)
def test_number(value: float | None, sign: bool, expected: str) -> None:
    assert number(value, sign=sign) == expected


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((-0.1234, 0.5), "[-0.123, +0.500]"), ((0.0, 12.0), "[+0.000, +12.000]"), (None, "—")],
)
def test_interval(bounds: tuple[float, float] | None, expected: str) -> None:
    assert interval(bounds) == expected


# --- terminals of every kind --------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("terminal", [False, True])
def test_characters_that_an_encoding_lacks_are_replaced(encoding: str, terminal: bool) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    rich = RichConsole(file=stream, width=100, force_terminal=terminal, legacy_windows=False)
    out = Console(rich)
    out.say("ppo \u2192 \u611f")
    with out.section("episodes") as progress:
        progress(1, 2, 10)
    out.comparison(ESTIMATES)
    stream.flush()
    text = visible(raw.getvalue().decode(encoding))
    assert " 0:00 ppo ? ?\n" in text
    assert "| valence " in text
    assert "+-----" in text


def test_a_terminal_breaks_lines_between_words_and_never_a_path() -> None:
    out, stream = console(width=30, terminal=True)
    path = "/" + "x" * 50
    out.say(f"update 1/4  valence -1.250  grad +3.000 {path}")
    lines = [line.rstrip() for line in visible(stream.getvalue()).splitlines()]
    assert lines == [" 0:00 update 1/4  valence", "      -1.250  grad +3.000", f"      {path}"]


def test_a_live_stage_fits_a_narrow_terminal() -> None:
    out, stream = console(width=40, terminal=True)
    with out.section("held-out episodes, trained and much longer") as progress:
        progress(1000, 2000, 400)
    live, _, _ = visible(stream.getvalue()).replace("\r", "\n").rpartition(" 0:00 ")
    assert "1000/2000" in live
    assert all(len(line) <= 40 for line in live.splitlines())


def test_no_variable_makes_a_terminal_of_a_log_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = Console()
    with out.section("episodes") as progress:
        progress(1, 2)
    assert "\x1b" not in capsys.readouterr().out


# --- long stages, and stops ---------------------------------------------------------------------


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_a_long_stage_says_every_half_minute_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("homeostat.report.console.time", clock)
    out, stream = console()
    with out.section("capability") as progress:
        for done in range(1, 11):  # 100 items in 10 s
            clock.now += 10.0
            progress(100 * done, 1000)
    assert stream.getvalue().splitlines() == [
        " 0:00 capability ...",
        " 0:30 capability: 300 of 1,000, 10 a second, 1:10 left",
        " 1:00 capability: 600 of 1,000, 10 a second, 0:40 left",
        " 1:30 capability: 900 of 1,000, 10 a second, 0:10 left",
        " 1:40 capability: 1:40",
    ]


def test_a_line_about_a_long_stage_has_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("homeostat.report.console.time", clock)
    out, stream = console()
    with out.section("replies") as progress:
        progress(0, 8, 100)
        clock.now = 40.0
        progress(1, 8, 700)
    assert stream.getvalue().splitlines()[1:] == [
        " 0:40 replies: 1 of 8, 20 tok/s, 0.025 a second, 4:40 left",
        " 0:40 replies: 0:40, 800 tokens, 20 tok/s",
    ]


class StopAskedFor(BaseException):
    pass


def refuse() -> None:
    raise StopAskedFor


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stop_ends_a_stage_at_its_next_report(terminal: bool) -> None:
    out, stream = console(terminal=terminal)
    with pytest.raises(StopAskedFor), out.heeding(refuse), out.section("episodes") as progress:
        progress(1, 2)
    assert "episodes: 0:00" not in visible(stream.getvalue())
    with out.section("report") as progress:  # nobody asks any more
        progress(1, 2)


def test_a_stage_that_must_be_whole_is_finished_first() -> None:
    out, stream = console()
    with out.heeding(refuse), out.section("round 1", whole=True) as progress:
        progress(1, 2)
    assert stream.getvalue().splitlines()[-1] == " 0:00 round 1: 0:00"
