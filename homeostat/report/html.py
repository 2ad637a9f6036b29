"""report.html: one self-contained file, made from what is in the run folder and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.config.rows import kept_rows
from homeostat.files import read_json, write_text
from homeostat.report.diary import read_diary
from homeostat.report.episodes import as_json, browser_data, script
from homeostat.report.figures import draw_effects, draw_signals, draw_valence
from homeostat.report.metrics import finite
from homeostat.report.pages import data_uri, read_template
from homeostat.report.plain import duration
from homeostat.report.sentences import headline, headroom_sentences, learns, suite_sentence
from homeostat.report.signal_figures import (
    draw_controls,
    draw_failures,
    draw_headroom,
    draw_histograms,
    draw_layers,
    draw_reliability,
)
from homeostat.report.steering_figures import draw_filter, draw_foundations, draw_trajectory
from homeostat.report.suite_figures import draw_claims, draw_survival

UNITS = {
    "entropy": "nats/token",
    "self_perplexity": "tokens",
    "base_perplexity": "tokens",
    "activation_norm": "ratio to base",
    "repetition": "share 0..1",
    "self_certainty": "nats/token",
    "sentiment": "-1..1",
    "curiosity": "0..1",
    "frustration": "0..1",
    "confusion": "0..1",
    "boredom": "0..1",
    "kl": "nats/token",
}
SHOWN_EPISODES = 3

# What further figures of a stage say, in their order in the report.
FURTHER = {
    "shown_shift": "shown_shift: the same replies, by where the base's own states lie along the "
    "persona's vector while it reads them, in doses",
    "shown_neutral_nats": "shown_neutral_nats: what shows in replies that nothing invites",
    "shown_last_turn_nats": "shown_last_turn_nats: what shows in the last reply of a longer talk",
}


def write_report(folder: Path) -> Path:
    """Draw the figures and write report.html from the files of a run folder.

    Text that a model or a bot wrote is escaped: the template engine escapes every value.
    """
    summary = _json(folder / "summary.json")
    calibration = _json(folder / "set_points.json", {})
    steps = _rows(folder / "metrics.jsonl")
    episodes = _rows(folder / "evals" / "homeostasis.jsonl")
    probes = _json(folder / "probes" / "report.json", {})
    failures = _rows(folder / "evals" / "failures.jsonl")
    rounds = _rows(folder / "rounds.jsonl")
    drawn = draw_figures(folder / "figures", summary, calibration, steps, probes, failures)
    if rounds:
        filtered = _rows(folder / "evals" / "filter.jsonl")
        drawn += draw_stages(folder / "figures", summary, rounds, filtered)
    suite = summary.get("suite", {})
    browser = browser_data(folder)
    run_browser, its_source = script("browser.js")
    diary = _rows(folder / "evals" / "diary.jsonl")
    template = read_template("report.html.j2", basenames=_basenames, duration=duration)
    page = template.render(
        summary=summary,
        learns=learns(summary),
        environment=_json(folder / "environment.json"),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        calibration=calibration,
        probes=probes,
        corpus=_json(folder / "probes" / "probes.json", {}).get("corpus"),
        failures=failures,
        rounds=rounds,
        diary=diary,
        chapters=read_diary(diary),
        shown=_json(folder / "evals" / "shown.json", None),
        further=further_figures(rounds),
        figures={path.stem: data_uri(path) for path in drawn},
        pairs=side_by_side(episodes),
        browser=None if browser is None else as_json(finite(browser)),
        browser_script=run_browser,
        browser_source=its_source,
        units=UNITS,
        headroom=headroom_sentences(summary.get("headroom"), calibration.get("set_points", {})),
        headline=f"{headline(summary)} {suite_sentence(suite)}".strip(),
        compared=any(m["diff"] is not None for e in suite.values() for m in e["metrics"].values()),
    )
    path = folder / "report.html"
    # Of the command line, bytes that are no text here.
    write_text(path, page.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return path


def further_figures(rounds: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Figures of stages beside trait and replies that some stage has, and what they say."""
    moved = [row.get("moved") or {} for row in rounds]
    return {
        name: says
        for name, says in FURTHER.items()
        if any((found.get(name) or {}).get("diff") is not None for found in moved)
    }


def draw_figures(
    folder: Path,
    summary: Mapping[str, Any],
    calibration: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    probes: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Every figure that the run has data for."""
    drawn = []
    if estimates := summary["eval"]:
        drawn.append(draw_valence(folder, steps, estimates))
        if any(e["diff"] is not None for e in estimates.values()):
            drawn.append(draw_effects(folder, estimates))
        drawn.append(draw_signals(folder, steps, estimates, calibration["set_points"], UNITS))
    if calibration:
        signals, points = calibration["signals"], calibration["set_points"]
        drawn.append(draw_histograms(folder, signals, points, UNITS))
    if probes:
        drawn += [draw(folder, probes) for draw in (draw_controls, draw_layers, draw_reliability)]
    terms = (summary.get("headroom") or {}).get("terms", {})
    if any(term["verdict"] is not None for term in terms.values()):
        drawn.append(draw_headroom(folder, terms))
    if failures:
        drawn.append(draw_failures(folder, failures))
    if suite := summary.get("suite"):
        paths = (draw_claims(folder, suite), draw_survival(folder, suite))
        drawn += [path for path in paths if path is not None]
    return drawn


def draw_stages(
    folder: Path,
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    filtered: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Every figure of steer and heal that there is data for."""
    drawn = [
        draw_trajectory(folder, rounds, summary.get("coherence_floor", 0.0)),
        draw_filter(folder, filtered),
        draw_foundations(folder, rounds),
    ]
    return [path for path in drawn if path is not None]


def _basenames(pair: str) -> str:
    """``fitted → tested`` without the folders of the files."""
    return " → ".join(Path(name).name for name in pair.split(" → "))


def side_by_side(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The first held-out episodes of different bots, each as played before and after."""
    after = {row["seed"]: row for row in rows if row["arm"] != "base"}
    chosen: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["arm"] == "base":
            chosen.setdefault(row["bot"], row)
    first = list(chosen.values())
    spare = [row for row in rows if row["arm"] == "base" and row not in first]
    return [(row, after.get(row["seed"])) for row in (first + spare)[:SHOWN_EPISODES]]


def _json(path: Path, default: Any = ...) -> Any:
    if not path.is_file() and default is not ...:
        return default
    return read_json(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    return kept_rows(path) if path.is_file() else []
