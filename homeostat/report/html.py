"""report.html: one self-contained file, made from what is in the run folder and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.config.rows import kept_rows
from homeostat.files import read_json, write_text
from homeostat.report.console import duration
from homeostat.report.diary import read_diary
from homeostat.report.figures import draw_effects, draw_signals, draw_valence
from homeostat.report.pages import data_uri, read_template
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
ALPHA = 0.05  # of the evaluations' claims, after Holm

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


def headline(summary: dict[str, Any]) -> str:
    """What the run found out, whichever way it went, in a sentence or two."""
    if "verdicts" in summary:
        answers = "; ".join(f"{v['id']} {v['answer']}" for v in summary["verdicts"])
        return (
            f"Steering towards {summary['persona']['name']}, {summary['steps']} stages: {answers}."
        )
    if not learns(summary):
        return _signals_headline(summary)
    if "valence" not in summary["eval"]:
        return "The run stopped before the base model was measured."
    trained, tested = summary["bot"], summary.get("held_out_bot", summary["bot"])
    who = "" if tested == trained else f"Tested on {tested}, trained on {trained}: "
    return who + _change(summary["eval"])


def _change(estimates: dict[str, Any]) -> str:
    """What training has changed on the held-out episodes."""
    valence = estimates["valence"]
    if valence["before"] is None:
        own = _own_terms(estimates)
        return f"The reward holds nothing at a set point. {own}{_felt(estimates)}"
    if valence["diff"] is None:
        return (
            f"Base model: mean valence {valence['before']:.2f} on {valence['n']} held-out "
            "episodes. The trained model was not measured."
        )
    if valence["ci95"] is None:
        return (
            f"Mean valence {valence['before']:.2f} → {valence['after']:.2f} on {valence['n']} "
            "held-out episodes, which all changed by as much: there is no interval."
        )
    low, high = valence["ci95"]
    verdict = (
        "nearer to its set points"
        if low > 0
        else "further from its set points"
        if high < 0
        else "no difference that this many episodes can show"
    )
    return (
        f"Mean valence {valence['before']:.2f} → {valence['after']:.2f} on {valence['n']} held-out "
        f"episodes: {valence['diff']:+.2f}, 95% interval [{low:+.2f}, {high:+.2f}] - {verdict}. "
        + _which_terms(estimates)
        + _felt(estimates)
    )


def learns(summary: Mapping[str, Any]) -> bool:
    """Whether the run was to change its model; an earlier summary says so by its trainer's name."""
    return bool(summary.get("learns", summary["trainer"] != "none"))


def suite_sentence(suite: Mapping[str, Any]) -> str:
    """Which evaluations' claims have moved by more than chance, after Holm; empty if none was run.

    A figure with a caveat is not counted: it does not say what its name says.
    """
    claims = {
        name: evaluation["metrics"][evaluation["claim"]] for name, evaluation in suite.items()
    }
    tested = [name for name, claim in claims.items() if claim.get("p_holm") is not None]
    spoilt = [name for name in tested if suite[name]["caveat"]]
    moved = [
        f"{name} {claims[name]['diff']:+.3f}"
        for name in tested
        if name not in spoilt and claims[name]["p_holm"] < ALPHA
    ]
    if not tested:
        return ""
    outcome = f"moved: {', '.join(moved)}" if moved else "none shows a change"
    left = f"; {len(spoilt)} cannot be read on this model, see their caveats" if spoilt else ""
    return f"Of {len(tested)} evaluations {outcome}{left}."


def headroom_sentences(headroom: Mapping[str, Any] | None, paid: Collection[str]) -> str:
    """Which terms of the reward can be earned and which readings believed; empty if unknown.

    Args:
        headroom: Of every term of the reward as it was asked for.
        paid: The terms that the run goes by.
    """
    if not headroom:
        return ""
    verdicts = {name: term["verdict"] for name, term in headroom["terms"].items()}
    parts = [
        f"{verdict}: {', '.join(name for name, own in verdicts.items() if own == verdict)}"
        for verdict in dict.fromkeys(v for v in verdicts.values() if v is not None)
    ]
    read = {name: found["within_r"] for name, found in headroom["loop"].items()}
    known = [f"{name} {r:+.2f}" for name, r in read.items() if r is not None]
    first = f"Of this reward's terms {'; '.join(parts)}." if parts else ""
    if left_out := [name for name in verdicts if name not in paid]:
        first += f" Left out, for too little of it is read: {', '.join(left_out)}."
    twins = next((f["identical_answers"] for f in headroom["loop"].values()), None)
    second = (
        f"Between replies to the same words, what users feel and what is read from their answers "
        f"correlate at {', '.join(known)}; {twins:.0%} of the replies got an answer that another "
        "one got word for word."
        if known and twins is not None
        else ""
    )
    return f"{first} {second}".strip()


def _basenames(pair: str) -> str:
    """``fitted → tested`` without the folders of the files."""
    return " → ".join(Path(name).name for name in pair.split(" → "))


def _signals_headline(summary: dict[str, Any]) -> str:
    """Which signals may be trusted as a reward."""
    verdicts = summary["probe_verdict"]
    by_verdict = {
        verdict: [name for name, given in verdicts.items() if given == verdict]
        for verdict in ("trusted", "weak", "unusable")
    }
    parts = [
        f"{verdict.capitalize()} affect probes: {', '.join(names)}."
        for verdict, names in by_verdict.items()
        if names
    ]
    if failures := summary["failures"]:
        unseen = [name.replace("_", " ") for name, best in failures.items() if not best["seen_by"]]
        parts.append(
            f"Of {len(failures)} kinds of failure no intrinsic signal sees: {', '.join(unseen)}."
            if unseen
            else f"Every one of {len(failures)} kinds of failure is seen by an intrinsic signal."
        )
    return " ".join(parts) or "The run stopped before the signals were validated."


def _which_terms(estimates: dict[str, Any]) -> str:
    """Which summands of valence moved, so that a sum never hides that one term did it all."""
    terms = {n.partition("/")[2]: e for n, e in estimates.items() if n.startswith("term/")}
    moved = [n for n, e in terms.items() if e["ci95"] and not e["ci95"][0] <= 0 <= e["ci95"][1]]
    if not moved:
        return "No single term has an interval that excludes 0."
    named = ", ".join(f"{name} {terms[name]['diff']:+.2f}" for name in moved)
    rest = [name for name in terms if name not in moved]
    return f"Terms that moved: {named}." + (f" No change shown: {', '.join(rest)}." if rest else "")


def _felt(estimates: dict[str, Any]) -> str:
    """What the bots truly felt, which no reward from readings sees; empty if nobody knows."""
    felt = estimates.get("relational_true")
    if felt is None or felt["ci95"] is None:
        return ""
    low, high = felt["ci95"]
    said = (
        f" By what these users truly felt: {felt['diff']:+.2f}, 95% interval "
        f"[{low:+.2f}, {high:+.2f}]."
    )
    read = estimates.get("relational_read")
    if read is not None and read["ci95"] is not None and read["ci95"][0] > max(0.0, high):
        least, most = read["ci95"]
        said += (
            f" What was read from their words gained {read['diff']:+.2f} "
            f"[{least:+.2f}, {most:+.2f}]: the reading was won, not the user."
        )
    return said


def _own_terms(estimates: dict[str, Any]) -> str:
    """What a reward without a valence pays, on held-out episodes."""
    said = []
    for name, estimate in estimates.items():
        if not name.startswith("own/"):
            continue
        text = f"{name.partition('/')[2]} {estimate['before']:.2f}"
        if estimate["diff"] is not None:
            text += f" → {estimate['after']:.2f}"
        if estimate["ci95"]:
            low, high = estimate["ci95"]
            text += (
                f", a difference of {estimate['diff']:+.2f}, 95% interval [{low:+.2f}, {high:+.2f}]"
            )
        said.append(text)
    return f"Its own terms on held-out episodes: {'; '.join(said) or 'none'}."


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
