"""A comparison in words: comparison.md, comparison.html and the tables of the console."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from rich.table import Table
from rich.text import Text

from homeostat.report.console import Console
from homeostat.report.episodes import script
from homeostat.report.pages import data_uri, read_template
from homeostat.report.plain import in_markdown, interval, number, visible

Json = Mapping[str, Any]
DIRECTIONS = {1: "higher is better", -1: "lower is better", 0: "no direction is better"}
ARROWS = {1: "↑", -1: "↓", 0: ""}


def title(column: Json) -> str:
    """Name of a column, with an arrow that says which way is better."""
    return f"{column['name']}: {_figure(column)}"


def _figure(column: Json) -> str:
    return f"{column['metric']} {ARROWS[column['good']]}".rstrip()


def _breakable(name: str) -> Markup:
    """A name that a browser may break after a sign."""
    return Markup(re.sub(r"([=_.,])(?=\S)", r"\1<wbr>", str(escape(visible(name)))))


def changes_by_arm(comparison: Json) -> list[str]:
    """What each arm changes by more than chance; a figure with a caveat is not counted."""
    spoilt = {column["name"] for column in comparison["columns"] if column["caveat"]}
    parts = []
    for arm in comparison["arms"]:
        tested = {n: c["difference"] for n, c in arm["cells"].items() if c["difference"]}
        if not tested:
            continue
        moved = [
            f"{name} {change['mean']:+.3f} ({change['verdict']})"
            for name, change in tested.items()
            if name not in spoilt and change["verdict"] != "no change shown"
        ]
        parts.append(f"{arm['name']}: {', '.join(moved) if moved else 'no change shown'}.")
    if not parts:
        return ["No arm could be compared with the baseline."]
    left = [f"Not counted, for their caveats: {', '.join(sorted(spoilt))}."] if spoilt else []
    return [f"Against {comparison['baseline']}:", *parts, *left]


def notes(comparison: Json) -> list[str]:
    """How the figures are to be read."""
    seeds = max((len(arm["seeds"]) for arm in comparison["arms"] if arm["runs"]), default=0)
    over = (
        "Each arm has one seed only: the intervals are over items alone, and nothing is known "
        "about other seeds."
        if seeds < 2
        else "Intervals are 95% t intervals over seeds and items, either of which has a variance "
        "of its own. An arm with one seed has intervals over items alone."
    )
    said = [
        f"Difference: the arm less {comparison['baseline']}, on the same items under the same "
        "seeds.",
        over,
        "Items that share a stem are averaged first and count as one group. Effect: the mean "
        "difference over the standard deviation of the groups' mean differences. p: sign-flip test "
        "over groups, each averaged over seeds, corrected after Holm over all arms and figures.",
        "Better, worse or moved: the corrected p is below 0.05 and the interval leaves 0 out.",
    ]
    if any(column["metric"] == "relational_true" for column in comparison["columns"]):
        said.append(
            "Felt: mean valence over all affects as the bots of the held-out episodes truly feel "
            "them, near the stated set points; the same quantity whatever the reward."
        )
    if any(column["metric"] == "valence" for column in comparison["columns"]):
        said.append(
            "Valence is measured by each run's own reward, on held-out episodes. Two arms can be "
            "compared in it only if they have the same set points and weights."
        )
    return said


def cells_of(comparison: Json) -> Iterator[tuple[Json, Json, Json]]:
    """Every arm and column with its cell."""
    for arm in comparison["arms"]:
        for column in comparison["columns"]:
            yield arm, column, arm["cells"][column["name"]]


def as_markdown(comparison: Json) -> str:
    """The comparison for people who read text."""
    columns = comparison["columns"]
    lines = [
        f"# Comparison of runs of {in_markdown(comparison['model'])}",
        "",
        *(f"- {in_markdown(line)}" for line in changes_by_arm(comparison)),
        "",
    ]
    lines += _row(["arm", "seeds", *map(title, columns)])
    lines += _row(["---"] * (2 + len(columns)))
    for arm in comparison["arms"]:
        cells = [_short(arm["cells"][column["name"]]) for column in columns]
        lines += _row([arm["name"], len(arm["seeds"]), *cells])
    lines += ["", "Level with its interval; Δ is the difference to the baseline.", ""]
    lines += [f"- {in_markdown(note)}" for note in notes(comparison)]
    lines += ["", "## Columns", ""]
    lines += [_about(column) for column in columns]
    lines += ["", "## Differences", "", *_differences(comparison)]
    lines += ["", "## Failed, stopped and missing", ""]
    if not comparison["problems"]:
        lines += ["None: every run and job has come to its end."]
        return "\n".join(lines) + "\n"
    lines += _row(["where", "arm", "seed", "status", "reason"]) + _row(["---"] * 5)
    for row in comparison["problems"]:
        seed = "" if row["seed"] is None else row["seed"]
        lines += _row([row["where"], row["arm"] or "", seed, row["status"], row["reason"]])
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[Any]) -> list[str]:
    return ["| " + " | ".join(in_markdown(str(cell)) for cell in cells) + " |"]


def _short(cell: Json) -> str:
    level, change = cell["level"], cell["difference"]
    if level is None:
        return "—"
    told = f"{number(level['mean'])} {interval(level['ci95'])}"
    if change is None:
        return told
    return f"{told}; Δ {number(change['mean'], sign=True)} {interval(change['ci95'])}"


def _about(column: Json) -> str:
    told = f"- **{column['name']}**: {column['metric']}, {DIRECTIONS[column['good']]}"
    replies = ", read from replies" if column["mode"] == "generate" else ""
    caveat = f" Caveat: {in_markdown(column['caveat'])}." if column["caveat"] else ""
    return f"{told}{replies}.{caveat}"


def _differences(comparison: Json) -> list[str]:
    names = "arm, figure, difference, 95% interval, effect, p, p (Holm), items, groups, seeds, says"
    lines = _row(names.split(", ")) + _row(["---"] * 11)
    for arm, column, cell in cells_of(comparison):
        change = cell["difference"]
        if change is None:
            continue
        figures = [number(change["mean"], sign=True), interval(change["ci95"])]
        figures += [number(change[key]) for key in ("effect", "p", "p_holm")]
        counts = [change["n_items"], change["n_groups"], change["n_seeds"]]
        caveat_ = ", with a caveat" if column["caveat"] else ""
        said = change["verdict"] + caveat_
        lines += _row([arm["name"], title(column), *figures, *counts, said])
    return lines


def as_html(comparison: Json, figure: Path | None) -> str:
    """The comparison as one self-contained page; every value is escaped."""
    template = read_template(
        "comparison.html.j2", title_of=title, figure_of=_figure, breakable=_breakable
    )
    tables_script, tables_source = script("tables.js")
    return template.render(
        tables_script=tables_script,
        tables_source=tables_source,
        comparison=comparison,
        headline=changes_by_arm(comparison),
        notes=notes(comparison),
        rows=list(cells_of(comparison)),
        directions=DIRECTIONS,
        figure=None if figure is None else data_uri(figure),
    )


def show(comparison: Json, console: Console) -> None:
    """A table per arm; a narrow window gets fewer columns."""
    for arm in comparison["arms"]:
        if any(cell["difference"] for cell in arm["cells"].values()):
            console.rich.print(_table(arm, comparison, console.rich.width))
    for column in comparison["columns"]:
        if column["caveat"]:
            console.say(f"* {column['name']}: {column['caveat']}")
    for row in comparison["problems"]:
        seed = "" if row["seed"] is None else f", seed {row['seed']}"
        console.say(f"{row['status']}: {row['arm'] or row['where']}{seed}: {row['reason']}")


def _table(arm: Json, comparison: Json, width: int) -> Table:
    said = f"{arm['name']} less {comparison['baseline']}"
    table = Table(title=Text(visible(said)), title_justify="left")
    table.add_column("figure", overflow="fold")
    wide, narrow = width >= 90, width < 60
    names = ["level", "difference", "95% interval", "p, Holm"] if wide else []
    for name in names or (["difference, 95%"] if narrow else ["difference", "95% interval"]):
        table.add_column(name, justify="right", no_wrap=True)
    for column in comparison["columns"]:
        cell = arm["cells"][column["name"]]
        if (change := cell["difference"]) is None:
            continue
        figures = [number(change["mean"], sign=True), interval(change["ci95"])]
        if wide:
            figures = [number(cell["level"]["mean"]), *figures, number(change["p_holm"])]
        name = (title(column) if wide else column["name"]) + ("*" if column["caveat"] else "")
        table.add_row(Text(name), *(["\n".join(figures)] if narrow else figures))
    return table
