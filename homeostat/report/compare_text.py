"""A comparison in words: comparison.md, comparison.html and the tables of the console."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from rich.table import Table
from rich.text import Text

from homeostat.report.console import Console, interval, number

Found = Mapping[str, Any]
DIRECTIONS = {1: "higher is better", -1: "lower is better", 0: "no direction is better"}
ARROWS = {1: "↑", -1: "↓", 0: ""}


def title(column: Found) -> str:
    """Name of a column, with an arrow that says which way is better."""
    return f"{column['name']}: {_figure(column)}"


def _figure(column: Found) -> str:
    return f"{column['metric']} {ARROWS[column['good']]}".rstrip()


def _breakable(name: str) -> Markup:
    """A name that a browser may break after a sign."""
    return Markup(re.sub(r"([=_.,])(?=\S)", r"\1<wbr>", str(escape(name))))


def headline(found: Found) -> list[str]:
    """What each arm changes by more than chance; a figure with a caveat is not counted."""
    spoilt = {column["name"] for column in found["columns"] if column["caveat"]}
    parts = []
    for arm in found["arms"]:
        tested = {n: c["difference"] for n, c in arm["cells"].items() if c["difference"]}
        if not tested:
            continue
        moved = [
            f"{name} {own['mean']:+.3f} ({own['verdict']})"
            for name, own in tested.items()
            if name not in spoilt and own["verdict"] != "no change shown"
        ]
        parts.append(f"{arm['name']}: {', '.join(moved) if moved else 'no change shown'}.")
    if not parts:
        return ["No arm could be compared with the baseline."]
    left = [f"Not counted, for their caveats: {', '.join(sorted(spoilt))}."] if spoilt else []
    return [f"Against {found['baseline']}:", *parts, *left]


def notes(found: Found) -> list[str]:
    """How the figures are to be read."""
    seeds = max((len(arm["seeds"]) for arm in found["arms"][1:]), default=0)
    over = (
        "Each arm has one seed only: the intervals are over items alone, and nothing is known "
        "about other seeds."
        if seeds < 2
        else f"Intervals are 95%, of {found['samples']} bootstrap draws that take seeds with "
        "replacement and, once for all of them, items. An arm with one seed has intervals over "
        "items alone; few seeds make an interval too narrow rather than too wide."
    )
    said = [
        f"Difference: the arm less {found['baseline']}, on the same items under the same seeds.",
        over,
        "Items that share a stem are averaged first and count as one group. Effect: the mean "
        "difference over the standard deviation of the groups' mean differences. p: sign-flip test "
        "over groups, each averaged over seeds, corrected after Holm over the figures of an arm.",
        "Better, worse or moved: the corrected p is below 0.05 and the interval leaves 0 out.",
    ]
    if any(column["metric"] == "valence" for column in found["columns"]):
        said.append(
            "Valence is measured by each run's own reward, on held-out episodes. Two arms can be "
            "compared in it only if they have the same set points and weights."
        )
    return said


def rows_of(found: Found) -> Iterator[tuple[Found, Found, Found]]:
    """Every arm and column with its cell."""
    for arm in found["arms"]:
        for column in found["columns"]:
            yield arm, column, arm["cells"][column["name"]]


def as_markdown(found: Found) -> str:
    """The comparison for people who read text."""
    columns = found["columns"]
    lines = [
        f"# Comparison of runs of {found['model']}",
        "",
        *(f"- {line}" for line in headline(found)),
        "",
    ]
    lines += _row(["arm", "seeds", *map(title, columns)])
    lines += _row(["---"] * (2 + len(columns)))
    for arm in found["arms"]:
        cells = [_short(arm["cells"][column["name"]]) for column in columns]
        lines += _row([arm["name"], len(arm["seeds"]), *cells])
    lines += ["", "Level with its interval; Δ is the difference to the baseline.", ""]
    lines += [f"- {note}" for note in notes(found)]
    lines += ["", "## Columns", ""]
    lines += [_about(column) for column in columns]
    lines += ["", "## Differences", "", *_differences(found)]
    lines += ["", "## Failed, stopped and missing", ""]
    if not found["problems"]:
        lines += ["None: every run and job has come to its end."]
        return "\n".join(lines) + "\n"
    lines += _row(["where", "arm", "seed", "status", "reason"]) + _row(["---"] * 5)
    for row in found["problems"]:
        seed = "" if row["seed"] is None else row["seed"]
        lines += _row([row["where"], row["arm"] or "", seed, row["status"], row["reason"]])
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[Any]) -> list[str]:
    told = (" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
    return ["| " + " | ".join(told) + " |"]


def _short(cell: Found) -> str:
    level, own = cell["level"], cell["difference"]
    if level is None:
        return "—"
    told = f"{number(level['mean'])} {interval(level['ci95'])}"
    if own is None:
        return told
    return f"{told}; Δ {number(own['mean'], sign=True)} {interval(own['ci95'])}"


def _about(column: Found) -> str:
    told = f"- **{column['name']}**: {column['metric']}, {DIRECTIONS[column['good']]}"
    replies = ", read from replies" if column["mode"] == "generate" else ""
    return f"{told}{replies}." + (f" Caveat: {column['caveat']}." if column["caveat"] else "")


def _differences(found: Found) -> list[str]:
    names = "arm, figure, difference, 95% interval, effect, p, p (Holm), items, groups, seeds, says"
    lines = _row(names.split(", ")) + _row(["---"] * 11)
    for arm, column, cell in rows_of(found):
        own = cell["difference"]
        if own is None:
            continue
        figures = [number(own["mean"], sign=True), interval(own["ci95"])]
        figures += [number(own[key]) for key in ("effect", "p", "p_holm")]
        counts = [own["n_items"], own["n_groups"], own["n_seeds"]]
        caveat_ = ", with a caveat" if column["caveat"] else ""
        said = own["verdict"] + caveat_
        lines += _row([arm["name"], title(column), *figures, *counts, said])
    return lines


def as_html(found: Found, figure: Path | None) -> str:
    """The comparison as one self-contained page; every value is escaped."""
    engine = Environment(
        loader=PackageLoader("homeostat.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"number": number, "interval": interval, "title_of": title}
    engine.filters |= {"figure_of": _figure, "breakable": _breakable}
    drawn = None
    if figure is not None:
        encoded = base64.b64encode(figure.read_bytes()).decode("ascii")
        drawn = f"data:image/png;base64,{encoded}"
    return engine.get_template("comparison.html.j2").render(
        found=found,
        headline=headline(found),
        notes=notes(found),
        rows=list(rows_of(found)),
        directions=DIRECTIONS,
        figure=drawn,
    )


def show(found: Found, console: Console) -> None:
    """A table per arm; a narrow window gets fewer columns."""
    for arm in found["arms"]:
        if any(cell["difference"] for cell in arm["cells"].values()):
            console.rich.print(_table(arm, found, console.rich.width))
    for column in found["columns"]:
        if column["caveat"]:
            console.say(f"* {column['name']}: {column['caveat']}")
    for row in found["problems"]:
        seed = "" if row["seed"] is None else f", seed {row['seed']}"
        console.say(f"{row['status']}: {row['arm'] or row['where']}{seed}: {row['reason']}")


def _table(arm: Found, found: Found, width: int) -> Table:
    table = Table(title=Text(f"{arm['name']} less {found['baseline']}"), title_justify="left")
    table.add_column("figure", overflow="fold")
    wide, narrow = width >= 90, width < 60
    names = ["level", "difference", "95% interval", "p, Holm"] if wide else []
    for name in names or (["difference, 95%"] if narrow else ["difference", "95% interval"]):
        table.add_column(name, justify="right", no_wrap=True)
    for column in found["columns"]:
        cell = arm["cells"][column["name"]]
        if (own := cell["difference"]) is None:
            continue
        figures = [number(own["mean"], sign=True), interval(own["ci95"])]
        if wide:
            figures = [number(cell["level"]["mean"]), *figures, number(own["p_holm"])]
        name = (title(column) if wide else column["name"]) + ("*" if column["caveat"] else "")
        table.add_row(Text(name), *(["\n".join(figures)] if narrow else figures))
    return table
