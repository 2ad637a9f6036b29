"""What a run found out, in sentences: for its report, and for whoever asks on the command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

ALPHA = 0.05  # of the evaluations' claims, after Holm


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
