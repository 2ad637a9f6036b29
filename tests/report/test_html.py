"""report.html from run folders written by hand: whole, escaped, self-contained."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from homeostat.report.html import side_by_side, write_report
from homeostat.report.sentences import headline, headroom_sentences

SCRIPT = "<script>alert(1)</script>"
MARKUP = "[bold]x[/bold]"
QUOTES = "\"' onmouseover=alert(2) src=http://example.com/a.png"
PNG = b"\x89PNG\r\n\x1a\n"
CORPUS = "/home/me/affect_corpus.jsonl"

Row = dict[str, Any]


# --- a run folder by hand -----------------------------------------------------------------------


def estimate(
    before: float | None,
    after: float | None = None,
    diff: float | None = None,
    ci95: Sequence[float] | None = None,
) -> Row:
    return {"before": before, "after": after, "diff": diff, "ci95": ci95, "n": 2}


def full_eval() -> Row:
    return {
        "valence": estimate(-2.0, -1.25, 0.75, [0.5, 1.0]),
        "coherence/kl": estimate(0.0, 0.11, 0.11, [0.1, 0.12]),
        "term/entropy": estimate(-1.0, -1.5, -0.5, [-0.7, -0.3]),
        "term/boredom": estimate(-1.0, 0.25, 1.25, [1.0, 1.5]),
        "own/mine": estimate(0.1, 0.2, 0.1, [-0.2, 0.4]),
        "signal/entropy": estimate(2.0, 2.5, 0.5, [0.4, 0.6]),
        "signal/boredom": estimate(None),
    }


def summary(**changes: Any) -> Row:
    return {
        "status": "finished",
        "trainer": "ppo",
        "model": "tiny",
        "bot": "mixed",
        "seed": 3,
        "steps": 2,
        "max_steps": 2,
        "wall_s": 125.0,
        "peak_rss_mb": 1234.0,
        "time_s": {"load": 30.0, "update": 90.0},
        "time_share": {"load": 0.25, "update": 0.75},
        "probe_auroc": {"boredom": 0.9},
        "probe_verdict": {"boredom": "trusted"},
        "rewarded_affects": ["boredom"],
        "perception": {"boredom": {"spearman": 0.4, "n": 4}},
        "staleness": None,
        "failures": None,
        "eval": full_eval(),
    } | changes


def episode(seed: int, arm: str, bot: str = "curious", said: str = "Well.", asked: str = "") -> Row:
    affect = {"sentiment": -0.25, "boredom": 0.5}
    user = {"role": "user", "text": asked or f"question {seed}", "affect": affect}
    return {
        "arm": arm,
        "seed": seed,
        "bot": bot,
        "turns": [
            {**user, "move": "opening", "perceived": {"boredom": 0.75}},
            {"role": "assistant", "text": said, "signals": {"entropy": 2.0, "boredom": None}},
            {**user, "move": "move_ask_again", "perceived": {}},
        ],
        "metrics": {"valence": -1.5},
    }


def set_points() -> Row:
    quantiles = {"0.05": 1.0, "0.25": 1.5, "0.5": 2.0, "0.75": 2.5, "0.95": 3.0}
    point = {"weight": 0.5, "setpoint": 2.0, "tolerance": 0.5, "automatic": ["tolerance"]}
    return {
        "signals": {
            "entropy": {"n": 8, "quantiles": quantiles, "values": [1.0, 2.0, 3.0]},
            "boredom": {"n": 0, "quantiles": dict.fromkeys(quantiles), "values": []},
        },
        "set_points": {"entropy": point | {"side": "above", "dead_zone": 0.25}},
        "base_norms": [1.0],
    }


def report(**changes: Any) -> Row:
    """What is known about one probe."""
    return {
        "layer": 1,
        "pooling": "mean",
        "regularisation": 0.003,
        "validation_auroc": {"0": 0.6, "1": 0.88},
        "auroc": 0.9,
        "ci95": [0.8, 0.95],
        "n": 20,
        "n_positive": 5,
        "brier": 0.11,
        "brier_base_rate": 0.1875,
        "reliability": [{"predicted": 0.2, "observed": 0.1, "n": 20}],
        "controls": {
            "shuffled_labels": 0.51,
            "random_direction": 0.55,
            "text_only": 0.75,
            "text_only_ci95": [0.6, 0.85],
            "probe_minus_text": 0.15,
            "probe_minus_text_ci95": [0.05, 0.25],
            "question_mark": 0.45,
            "within_question_marks": None,
            "text_only_within_question_marks": None,
            "n_within_question_marks": 3,
        },
        "heldout_auroc": None,
        "heldout": None,
        "transfer": {"own.csv → own.csv": figures_of(0.9)},
        "verdict": "trusted",
        "reason": "it beats the words",
    } | changes


def figures_of(auroc: float | None) -> Row:
    return {
        "auroc": auroc,
        "ci95": None if auroc is None else [auroc - 0.1, auroc + 0.05],
        "n": 20,
        "text_only": 0.7,
        "text_only_ci95": [0.6, 0.8],
    }


def failure(
    kind: str, signal: str, auroc: float | None, example: str = "ha ha", prompt: str = "Why?"
) -> Row:
    return {
        "failure": kind,
        "signal": signal,
        "auroc": auroc,
        "ci95": None if auroc is None else [auroc - 0.1, min(1, auroc + 0.1)],
        "n": 4,
        "n_ordinary": 4,
        "auroc_raw": 0.25,
        "mean": 0.5,
        "ordinary_mean": 0.125,
        "prompt": prompt,
        "example": example,
    }


ENVIRONMENT = {
    "homeostat": "0.1.0",
    "git_revision": None,
    "command": ["scale=smoke"],
    "python": "3.11",
    "platform": "Linux",
    "torch_threads": 2,
    "packages": {"torch": "2.0"},
}
STEPS = [
    {"step": 1, "reward/valence": -2.0, "signal/entropy_mean": 2.0, "signal/boredom_mean": None},
    {"step": 2, "reward/valence": -1.5, "signal/entropy_mean": 2.2, "signal/boredom_mean": 0.5},
]


def run_folder(
    folder: Path,
    about: Row,
    episodes: Sequence[Row] = (),
    *,
    steps: Sequence[Row] = (),
    points: Row | None = None,
    probes: Row | None = None,
    failures: Sequence[Row] = (),
    environment: Row = ENVIRONMENT,
    config: str = "seed: 3\n",
) -> Path:
    """The files that a run leaves behind, as far as it came."""
    files = {
        "summary.json": json.dumps(about),
        "environment.json": json.dumps(environment),
        "config.yaml": config,
        "set_points.json": points and json.dumps(points),
        "probes/probes.json": probes and json.dumps({"corpus": CORPUS}),
        "probes/report.json": probes and json.dumps(probes),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in steps),
        "evals/homeostasis.jsonl": "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in episodes
        ),
        "evals/failures.jsonl": "".join(json.dumps(row) + "\n" for row in failures),
    }
    for name, text in files.items():
        if text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose every text wants to be markup."""
    hostile = f"{SCRIPT} {MARKUP} {QUOTES}"
    folder = run_folder(
        tmp_path_factory.mktemp("finished"),
        summary(model=f"tiny {SCRIPT}"),
        [
            episode(0, "base", said=hostile, asked=f"user {hostile}"),
            episode(0, "trained", said="Two words."),
            episode(1, "base", "bored", said=""),
            episode(1, "trained", "bored", said="</div></body>"),
        ],
        steps=STEPS,
        points=set_points(),
        probes={"boredom": report()},
        environment=ENVIRONMENT | {"command": [f"tracker.run_name={SCRIPT}"]},
        config=f"name: {SCRIPT}\n",
    )
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(finished: Path) -> str:
    """The page as it was written."""
    return (finished / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    """The page as a browser reads it."""
    return Page(html)


# --- a finished run -----------------------------------------------------------------------------


def test_no_text_of_the_run_becomes_markup(html: str, page: Page) -> None:
    assert html.count("<script") == 2, "the browser and its data"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("</body>") == 1
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "link", "b1"})
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "episode-data"}, {}]
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]


@pytest.mark.parametrize(
    "text",
    [
        f"{SCRIPT} {MARKUP} {QUOTES}",
        f"user {SCRIPT}",
        f"PPO on tiny {SCRIPT}",
        f"homeostat tracker.run_name={SCRIPT}",
        f"name: {SCRIPT}",
        "</div></body>",
    ],
)
def test_every_text_of_the_run_is_shown_literally(page: Page, text: str) -> None:
    assert text in page.text


def test_the_page_needs_nothing_from_outside(html: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"<[^>]*(src|href)=[\"']?\s*(https?:)?//", html)
    assert "@import" not in html
    assert "url(" not in html


def test_figures_are_png_files_and_part_of_the_page(finished: Path, page: Page) -> None:
    shown = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    files = sorted((finished / "figures").iterdir())
    assert [path.stem for path in files] == [
        "effects",
        "probe_controls",
        "probe_layers",
        "probe_reliability",
        "set_points",
        "signals",
        "valence",
    ]
    embedded = {base64.b64decode(source.partition("base64,")[2]) for source in shown}
    assert len(shown) == 7
    assert embedded == {path.read_bytes() for path in files}
    assert all(content.startswith(PNG) and len(content) > 1000 for content in embedded)


def test_nothing_but_the_report_and_its_figures_is_written(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "summary.json",
        "environment.json",
        "config.yaml",
        "set_points.json",
        "metrics.jsonl",
        "probes",
        "evals",
        "figures",
        "report.html",
    }


@pytest.mark.parametrize(
    "row",
    [
        "valence valence -2.000 -1.250 +0.750 [+0.500, +1.000] 2",
        "coherence/kl nats/token 0.000 0.110 +0.110 [+0.100, +0.120] 2",
        "term/entropy valence -1.000 -1.500 -0.500 [-0.700, -0.300] 2",
        "signal/entropy nats/token 2.000 2.500 +0.500 [+0.400, +0.600] 2",
        "signal/boredom 0..1 — — — — 2",
        "entropy nats/token 0.5 2.000 0.500 above, beyond 0.250 tolerance 1.000 1.500 2.000 2.500 "
        "3.000 8",
        "boredom 0..1 0 — — — — — — — — — 0",
        "boredom trusted 1 mean 0.900 [0.800, 0.950] 0.750 [0.050, 0.250] — 5 / 20 +0.400 4",
        "boredom is trusted: it beats the words.",
        "boredom 0.510 0.550 0.450 — — 3 0.110 0.188",
    ],
)
def test_tables_hold_what_was_measured(page: Page, row: str) -> None:
    assert row in page.text


def test_only_a_clear_change_of_reward_and_a_verdict_are_coloured(html: str) -> None:
    assert re.findall(r'<td class="up">([^<]*)<', html) == ["+0.750", "+1.250", "trusted"]
    assert re.findall(r'<td class="down">([^<]*)<', html) == ["-0.500"]


def test_every_row_of_a_table_has_as_many_cells_as_its_head(html: str) -> None:
    for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL):
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in table.split("<tr")[1:]}
        assert len(widths) == 1, table


def test_the_corpus_is_named_without_its_folder(page: Page) -> None:
    assert "fitted on affect_corpus.jsonl;" in page.text
    assert "/home/me" not in page.text


def test_one_corpus_alone_has_no_table_of_transfer(page: Page) -> None:
    assert "Across corpora" not in page.text
    assert "On the held-out file" not in page.text


def test_facts_of_the_run(page: Page) -> None:
    for fact in ("seed 3", "updates 2 of 2", "time 2:05", "1.23 GB", "status finished"):
        assert fact in page.text
    assert "load 25% (0:30)" in page.text
    assert "update 75% (1:30)" in page.text


def test_an_empty_reply_is_shown_as_nothing(page: Page) -> None:
    assert "(nothing)" in page.text


def test_meters_stay_within_their_track(html: str) -> None:
    places = [float(place) for place in re.findall(r'style="left:([-\d.]+)%"', html)]
    assert places
    # Sentiment -0.25 lies at 37.5% of -1..1, boredom 0.5 and 0.75 at 50% and 75% of 0..1.
    assert set(places) == {37.5, 50.0, 75.0}


# --- runs that did not come to their end --------------------------------------------------------


def test_a_run_that_stopped_before_its_evaluation(tmp_path: Path) -> None:
    about = summary(status="interrupted", steps=0, eval={}, perception=None, probe_auroc={})
    text = Page(write_report(run_folder(tmp_path, about)).read_text("utf-8")).text
    assert "This run was interrupted after update 0 of 2." in text
    assert "stopped before the base model was measured" in text
    assert "Before and after" not in text
    assert not (tmp_path / "figures").exists()


def test_a_run_that_stopped_after_its_set_points(tmp_path: Path) -> None:
    about = summary(status="interrupted", steps=0, eval={}, perception=None)
    folder = run_folder(tmp_path, about, points=set_points(), probes={"boredom": report()})
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "Signals and their set points" in text
    assert "[0.050, 0.250] — 5 / 20 — —" in text


def test_a_run_that_stopped_before_the_second_evaluation(tmp_path: Path) -> None:
    """No probes and no updates either: only what the base model showed."""
    before = {name: estimate(e["before"]) for name, e in full_eval().items()}
    folder = run_folder(
        tmp_path,
        summary(status="interrupted", steps=0, eval=before, perception={}, probe_auroc={}),
        [episode(0, "base")],
        points=set_points(),
    )
    page = Page(write_report(folder).read_text("utf-8"))
    assert "The trained model was not measured." in page.text
    assert "not measured after training" in page.text
    assert "valence valence -2.000 — — — 2" in page.text
    drawn = sorted(path.name for path in (folder / "figures").iterdir())
    assert drawn == ["set_points.png", "signals.png", "valence.png"]
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1e", "\x0b"])
def test_a_reply_may_hold_any_line_separator(tmp_path: Path, separator: str) -> None:
    rows = [episode(0, "base", said=f"one{separator}two"), episode(1, "base")]
    folder = run_folder(tmp_path, summary(eval={}, perception=None), rows)
    text = write_report(folder).read_text("utf-8")
    assert "one" in text
    assert "two" in text
    assert text.count('class="pair"') == 2


# --- a run without training ----------------------------------------------------------------------


def best(signal: str, auroc: float | None, *seen_by: str) -> Row:
    ci95 = None if auroc is None else [auroc - 0.1, 1.0]
    return {"best": signal, "auroc": auroc, "ci95": ci95, "seen_by": list(seen_by)}


def validation_summary(**changes: Any) -> Row:
    return (
        summary(
            trainer="none",
            steps=0,
            eval={},
            probe_verdict={"boredom": "trusted", "curiosity": "weak", "confusion": "unusable"},
            rewarded_affects=["boredom"],
            failures={
                "greedy_loop": best("repetition", 0.875, "repetition", "entropy"),
                "irrelevant": best("entropy", 0.5),
                "one_word": best("entropy", None),
            },
        )
        | changes
    )


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    """Folder, page as written and page as read; what the model said wants to be markup."""
    hostile = f"{SCRIPT} {MARKUP} {QUOTES}"
    together = "all, as weighted"
    folder = run_folder(
        tmp_path_factory.mktemp("validated"),
        validation_summary(),
        points=set_points(),
        probes={
            "boredom": report(
                heldout_auroc=0.85,
                heldout=report()["controls"]
                | {"auroc": 0.85, "ci95": [0.7, 0.9]}
                | {"n": 30, "n_positive": 12, "probe_minus_text_ci95": None},
                transfer={
                    "/a/own.csv → /a/own.csv": figures_of(0.9),
                    "/a/own.csv → other.jsonl": figures_of(None),
                },
            ),
            "curiosity": report(verdict="weak", reason=f"why {SCRIPT}"),
            "confusion": report(verdict="unusable", ci95=None),
        },
        failures=[
            failure("greedy_loop", "repetition", 0.875, hostile, f"asked {SCRIPT}"),
            failure("greedy_loop", "entropy", 0.75, hostile),
            failure("greedy_loop", together, 0.625, hostile),
            failure("irrelevant", "entropy", 0.5, "</div></body>"),
            failure("irrelevant", together, 0.375),
            failure("one_word", "entropy", None, ""),
            failure("one_word", together, None),
        ],
    )
    html = write_report(folder).read_text(encoding="utf-8")
    return folder, html, Page(html)


def test_no_text_of_a_failure_becomes_markup(validated: tuple[Path, str, Page]) -> None:
    _, html, page = validated
    assert "<script" not in html
    assert html.count("</body>") == 1
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "link"})
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    said = [f"{SCRIPT} {MARKUP} {QUOTES}", f"asked {SCRIPT}", f"why {SCRIPT}", "</div></body>"]
    assert [text for text in said if text not in page.text] == []


@pytest.mark.parametrize(
    "row",
    [
        "greedy loop repetition 0.875 [0.775, 1.000] 4 0.625 repetition, entropy",
        "irrelevant entropy 0.500 [0.400, 1.000] 4 0.375 no signal",
        "one word entropy — — 4 — no signal",
        "greedy loop entropy 0.750 [0.650, 0.850] 0.250 0.500 0.125",
        "one word entropy — — 0.250 0.500 0.125",
        "one word (nothing)",
        "boredom trusted 1 mean 0.900 [0.800, 0.950] 0.750 [0.050, 0.250] 0.850 5 / 20 +0.400 4",
        "confusion unusable 1 mean 0.900 — 0.750 [0.050, 0.250] — 5 / 20 — —",
        "Not part of this run's reward: curiosity, confusion.",
        "boredom 0.850 [0.700, 0.900] 0.750 — 0.450 — — 12 / 30",
        "boredom own.csv → own.csv 0.900 [0.800, 0.950] 0.700 20",
        "boredom own.csv → other.jsonl — — 0.700 20",
        "Signals of tiny",
    ],
)
def test_validation_tables_hold_what_was_measured(
    validated: tuple[Path, str, Page], row: str
) -> None:
    assert row in validated[2].text


def test_a_run_without_training_shows_no_updates(validated: tuple[Path, str, Page]) -> None:
    folder, html, page = validated
    assert "updates" not in page.text.replace("over the updates", "")
    assert "Before and after" not in page.text
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == [
        "failures",
        "probe_controls",
        "probe_layers",
        "probe_reliability",
        "set_points",
    ]
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 5
    # what the run is about stands before the set points
    assert html.index("Affect probes") < html.index("Signals and their set points")


def test_a_reward_without_intrinsic_signals_has_no_figure_of_all_of_them(tmp_path: Path) -> None:
    """As with reward=relational_only: no row of all signals together, as weighted."""
    about = validation_summary(failures={"empty": best("entropy", 0.5)})
    rows = [failure("empty", "entropy", 0.5)]
    folder = run_folder(tmp_path, about, points=set_points(), failures=rows)
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "empty entropy 0.500 [0.400, 1.000] 4 — no signal" in text


def test_an_interrupted_validation_says_so(tmp_path: Path) -> None:
    about = validation_summary(status="interrupted", failures=None, probe_verdict={})
    folder = run_folder(tmp_path, about, points=set_points())
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "This run was interrupted. The run stopped before the signals were validated." in text


def test_stale_probes_are_shown(tmp_path: Path) -> None:
    found = {"auroc_off": 0.9, "auroc_on": 0.7, "distance": 0.2, "n": 16, "stale": True}
    missing = {"auroc_off": None, "auroc_on": None, "distance": 0.01, "n": 0, "stale": False}
    about = summary(staleness={"boredom": found, "curiosity": missing})
    folder = run_folder(
        tmp_path, about, points=set_points(), probes={n: report() for n in about["staleness"]}
    )
    html = write_report(folder).read_text("utf-8")
    text = Page(html).text
    assert "boredom 0.900 0.700 0.200 16 stale" in text
    assert "curiosity — — 0.010 0 no" in text
    assert '<td class="down">stale' in html


# --- the headline -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("diff", "ci95", "verdict"),
    [
        (0.75, [0.5, 1.0], "nearer to its set points"),
        (-0.75, [-1.0, -0.5], "further from its set points"),
        (0.75, [-0.1, 1.6], "no difference"),
        (-0.75, [-1.6, 0.1], "no difference"),
        (0.5, [0.0, 1.0], "no difference"),
        (0.0, [0.0, 0.0], "no difference"),
    ],
)
def test_the_headline_says_what_the_interval_allows(
    diff: float, ci95: list[float], verdict: str
) -> None:
    text = headline(summary(eval={"valence": estimate(-2.0, -2.0 + diff, diff, ci95)}))
    assert verdict in text
    others = {"nearer", "further", "no difference"} - {verdict.split(" to ")[0].split(" from ")[0]}
    assert not [other for other in others if other in text]
    assert f"-2.00 → {-2.0 + diff:.2f}" in text
    assert f"{diff:+.2f}" in text
    assert f"[{ci95[0]:+.2f}, {ci95[1]:+.2f}]" in text
    assert "2 held-out episodes" in text


def test_the_headline_names_the_terms_that_moved() -> None:
    text = headline(summary())
    assert "entropy -0.50" in text
    assert "boredom +1.25" in text
    still = full_eval() | {"term/boredom": estimate(-1.0, -0.5, 0.5, [-0.1, 1.1])}
    text = headline(summary(eval=still))
    assert "entropy -0.50" in text
    assert "boredom +" not in text


def test_the_headline_says_who_was_tested_where_that_is_another() -> None:
    same = headline(summary())
    assert headline(summary(held_out_bot="mixed")) == same
    other = headline(summary(held_out_bot="frustrated"))
    assert other == f"Tested on frustrated, trained on mixed: {same}"


def test_the_headline_without_an_evaluation() -> None:
    assert "before the base model was measured" in headline(summary(eval={}))


def test_the_headline_without_a_second_evaluation() -> None:
    text = headline(summary(eval={"valence": estimate(-2.345)}))
    assert "-2.3" in text
    assert "The trained model was not measured" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "Trusted affect probes: boredom. Weak affect probes: curiosity. Unusable affect "
            "probes: confusion. Of 3 kinds of failure no intrinsic signal sees: irrelevant, one "
            "word.",
        ),
        (
            {
                "probe_verdict": {"boredom": "weak", "curiosity": "weak"},
                "failures": {"empty": best("entropy", 1.0, "entropy")},
            },
            "Weak affect probes: boredom, curiosity. Every one of 1 kinds of failure is seen by an "
            "intrinsic signal.",
        ),
        (
            {"probe_verdict": {}, "failures": {"empty": best("entropy", 0.5)}},
            "Of 1 kinds of failure no intrinsic signal sees: empty.",
        ),
        ({"failures": None, "probe_verdict": {"boredom": "weak"}}, "Weak affect probes: boredom."),
        (
            {"failures": None, "probe_verdict": {}},
            "The run stopped before the signals were validated.",
        ),
    ],
)
def test_the_headline_of_a_run_without_training(changes: Row, expected: str) -> None:
    assert headline(validation_summary(**changes)) == expected


# --- which episodes are shown -------------------------------------------------------------------


def shown(rows: list[Row]) -> list[tuple[int, str, int | None]]:
    return [
        (before["seed"], before["bot"], after and after["seed"])
        for before, after in side_by_side(rows)
    ]


def test_the_first_episode_of_each_bot_is_shown_before_and_after() -> None:
    base = [episode(s, "base", bot) for s, bot in enumerate(["a", "a", "b", "a", "c", "d"])]
    after = [{**row, "arm": "trained"} for row in reversed(base)]
    assert shown([*base, *after]) == [(0, "a", 0), (2, "b", 2), (4, "c", 4)]


def test_one_bot_alone_is_shown_three_times() -> None:
    base = [episode(seed, "base", "a") for seed in range(5)]
    assert shown(base) == [(0, "a", None), (1, "a", None), (2, "a", None)]


def test_pairs_are_of_one_seed_and_in_order() -> None:
    rows = [episode(0, "base"), episode(1, "base", "b"), episode(1, "trained", "b", said="New.")]
    (first, nothing), (second, other) = side_by_side(rows)
    assert (first["seed"], nothing) == (0, None)
    assert other is not None
    assert (second["arm"], other["arm"], other["turns"][1]["text"]) == ("base", "trained", "New.")


def test_no_episodes_no_pairs() -> None:
    assert side_by_side([]) == []


# --- headroom, and what users truly felt --------------------------------------------------------


def headroom() -> Row:
    def of(mean: float) -> Row:
        return {"mean": mean, "ci95": [mean - 0.05, mean + 0.05]}

    term = {"reply_share": of(0.7), "best_of_8": of(0.2), "salad": of(-0.1)}
    found = {"within_r": 0.42, "ci95": [0.3, 0.5], "n_seeds": 48, "n_replies": 384}
    return {
        "terms": {
            "boredom": term | {"verdict": "can be earned", "n_seeds": 48},
            "entropy": term | {"verdict": "earned by nonsense", "n_seeds": 48},
            "sentiment": {"verdict": None, "n_seeds": 1},
        },
        "loop": {
            "boredom": found | {"identical_answers": 0.25},
            "sentiment": {"within_r": None, "ci95": None, "n_seeds": 0, "n_replies": 0}
            | {"identical_answers": 0.25},
        },
    }


def test_headroom_is_said_in_two_sentences() -> None:
    assert headroom_sentences(headroom(), {"boredom", "entropy", "sentiment"}) == (
        "Of this reward's terms can be earned: boredom; earned by nonsense: entropy. Between "
        "replies to the same words, what users feel and what is read from their answers correlate "
        "at boredom +0.42; 25% of the replies got an answer that another one got word for word."
    )
    assert headroom_sentences(None, {}) == ""
    paid = {"entropy"}
    assert " Left out, for too little of it is read: boredom, sentiment. Between " in (
        headroom_sentences(headroom(), paid)
    )


def test_headroom_has_a_table_and_a_figure(tmp_path: Path) -> None:
    felt = {"relational_true": estimate(-0.9, -0.7, 0.2, [0.1, 0.3])}
    cool = {"relational_true": estimate(-0.9, -0.8, 0.1, [0.0, 0.2])}
    found = summary(headroom=headroom(), eval=full_eval() | felt, cool=cool, cool_temperature=0.7)
    folder = run_folder(tmp_path, found, steps=STEPS, points=set_points())
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "boredom can be earned 0.700 [+0.650, +0.750] +0.200 [+0.150, +0.250]" in text
    assert "sentiment too few users — — — —" in text
    assert "By what these users truly felt: +0.20, 95% interval [+0.10, +0.30]." in text
    assert "the base sampled at temperature 0.7 is +0.100 [+0.000, +0.200] from itself at 1" in text
    assert (tmp_path / "figures" / "headroom.png").stat().st_size > 5000


def test_of_a_figure_beside_the_claim_an_interval_is_shown_where_the_evaluation_keeps_one(
    tmp_path: Path,
) -> None:
    test = {"before": 1.5, "after": None, "diff": None, "ci95": None, "n": 9}
    test |= {"effect": None, "p": None, "smallest": None}
    beliefs = {
        "claim": "sycophancy",
        "caveat": None,
        "level": {"mean": 1.5, "ci95": [1.0, 2.0], "n": 9},
        "metrics": {"sycophancy": test, "sad": test | {"before": 0.5}, "raw": test},
        "moods": {"base": {"sad": {"mean": 0.5, "ci95": [0.25, 0.75], "n": 9}}},
    }
    about = summary(suite={"false_beliefs": beliefs})
    folder = run_folder(tmp_path, about, points=set_points())
    html = write_report(folder).read_text(encoding="utf-8")
    text = Page(html).text
    assert "false_beliefs sycophancy +1.500 [+1.000, +2.000] 9" in text
    assert "sad +0.500 [+0.250, +0.750] 9" in text
    assert "raw +1.500 9" in text


@pytest.mark.parametrize(
    ("felt", "read", "said"),
    [
        ([-0.3, 0.04], [0.1, 0.3], True),  # read nearer, felt no nearer
        ([-0.3, 0.15], [0.1, 0.3], False),  # they overlap
        ([-0.3, -0.2], [-0.1, 0.3], False),  # nothing was gained
    ],
)
def test_a_gain_of_the_reading_alone_is_said(
    tmp_path: Path, felt: list[float], read: list[float], said: bool
) -> None:
    both = {
        "relational_true": estimate(-0.8, -0.9, -0.1, felt),
        "relational_read": estimate(-0.9, -0.7, 0.2, read),
    }
    folder = run_folder(
        tmp_path, summary(eval=full_eval() | both), steps=STEPS, points=set_points()
    )
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    sentence = "gained +0.20 [+0.10, +0.30]: the reading was won, not the user."
    assert (sentence in text) == said


def test_the_report_has_the_prompted_base_beside_the_others(tmp_path: Path) -> None:
    felt = {"relational_true": estimate(-0.9, -0.7, 0.2, [0.1, 0.3])}
    told = {"relational_true": estimate(-0.9, -0.6, 0.3, [0.2, 0.4])}
    claim = {"before": 1.0, "after": 0.5, "diff": -0.5, "ci95": [-0.75, -0.25], "n": 9}
    whole = claim | {"effect": -1.0, "p": 0.01, "p_holm": 0.02, "smallest": 0.1}
    own = {
        "claim": "sycophancy",
        "mode": "logprob",
        "caveat": None,
        "metrics": {"sycophancy": whole},
    }
    own["level"] = {"mean": 1.0, "ci95": [0.5, 1.5]}
    own["prompted"] = {"caveat": "at chance", "metrics": {"sycophancy": whole}}
    prompt = 'Be "kind" & calm.'
    found = summary(
        eval=full_eval() | felt, prompt=prompt, prompted=told, suite={"answer": own}
    ) | {"held_out_bot": "bored"}
    folder = run_folder(tmp_path, found, steps=STEPS, points=set_points())
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "bot mixed tested on bored seed 3" in text
    assert (
        f"in relational_true : the base that is told “{prompt}” is +0.300 [+0.200, +0.400] from "
        "itself without; training made it +0.200 [+0.100, +0.300]." in text
    )
    assert f"with the system turn “{prompt}”" in text
    assert "answer sycophancy +0.500 -0.500 [-0.750, -0.250] 0.020 9 at chance" in text
