"""report.html: one self-contained file, made from what is in the run folder and nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from homeostat.files import write_text
from homeostat.report.console import duration, interval, number
from homeostat.report.figures import draw_effects, draw_signals, draw_valence

UNITS = {
    "entropy": "nats/token",
    "self_perplexity": "tokens",
    "base_perplexity": "tokens",
    "activation_norm": "ratio to base",
    "repetition": "share 0..1",
    "sentiment": "-1..1",
    "curiosity": "probability",
    "frustration": "probability",
    "confusion": "probability",
    "boredom": "probability",
    "kl": "nats/token",
}
SHOWN_EPISODES = 3


def write_report(folder: Path) -> Path:
    """Draw the figures and write report.html from the files of a run folder.

    Text that a model or a bot wrote is escaped: the template engine escapes every value.
    """
    summary = _json(folder / "summary.json")
    calibration = _json(folder / "set_points.json", {})
    steps = _rows(folder / "metrics.jsonl")
    episodes = _rows(folder / "evals" / "homeostasis.jsonl")
    figures = []
    if summary["eval"]:
        points, estimates = calibration["set_points"], summary["eval"]
        figures.append(draw_valence(folder / "figures", steps, estimates))
        if any(e["diff"] is not None for e in estimates.values()):
            figures.append(draw_effects(folder / "figures", estimates))
        figures.append(draw_signals(folder / "figures", steps, estimates, points, UNITS))
    engine = Environment(
        loader=PackageLoader("homeostat.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"number": number, "interval": interval, "duration": duration}
    page = engine.get_template("report.html.j2").render(
        summary=summary,
        environment=_json(folder / "environment.json"),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        calibration=calibration,
        probes=_json(folder / "probes" / "probes.json", None),
        figures=[(path.stem, _data_uri(path)) for path in figures],
        pairs=side_by_side(episodes),
        units=UNITS,
        headline=headline(summary),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def headline(summary: dict[str, Any]) -> str:
    """One sentence: what the run found out about valence, whichever way it went."""
    found = summary["eval"].get("valence")
    if found is None:
        return "The run stopped before the base model was measured."
    if found["diff"] is None:
        return (
            f"Base model: mean valence {found['before']:.2f} on {found['n']} held-out episodes. "
            "The trained model was not measured."
        )
    low, high = found["ci95"]
    verdict = (
        "nearer to its set points"
        if low > 0
        else "further from its set points"
        if high < 0
        else "no difference that this many episodes can show"
    )
    return (
        f"Mean valence {found['before']:.2f} → {found['after']:.2f} on {found['n']} held-out "
        f"episodes: {found['diff']:+.2f}, 95% interval [{low:+.2f}, {high:+.2f}] - {verdict}. "
        + _which_terms(summary["eval"])
    )


def _which_terms(estimates: dict[str, Any]) -> str:
    """Which summands of valence moved, so that a sum never hides that one term did it all."""
    terms = {n.partition("/")[2]: e for n, e in estimates.items() if n.startswith("term/")}
    moved = [n for n, e in terms.items() if e["ci95"] and not e["ci95"][0] <= 0 <= e["ci95"][1]]
    if not moved:
        return "No single term has an interval that excludes 0."
    named = ", ".join(f"{name} {terms[name]['diff']:+.2f}" for name in moved)
    rest = [name for name in terms if name not in moved]
    return f"Terms that moved: {named}." + (f" No change shown: {', '.join(rest)}." if rest else "")


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
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
