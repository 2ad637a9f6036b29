"""What the report's episode browser is made of: held-out users in every arm, training by update.

A page of everything would not open, so of many episodes a stated number is taken: whole users, all
arms of each, and training evenly over the updates.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from homeostat.config.rows import kept_rows
from homeostat.report.plain import visible

Row = Mapping[str, Any]
FILES = ("homeostasis", "cool", "prompted")
USERS, TRAINED = 200, 600  # held-out users and training episodes that a page has at most
TURN = ("role", "text", "move", "affect", "perceived", "signals")
SHOWN_SIGNALS = ("entropy", "base_perplexity", "repetition")
# What would end the script that holds the data, or a line of it to an older browser.
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def browser_data(folder: Path) -> dict[str, Any] | None:
    """What the browser shows of a run folder; None where no episode was played."""
    held_out = [row for name in FILES for row in _rows(folder / "evals" / f"{name}.jsonl")]
    users = _by_user([row for row in held_out if "turns" in row])
    # A run that steers keeps completions there, which the diary and the rounds tell.
    training = [row for row in _rows(folder / "episodes.jsonl") if "turns" in row]
    if not users and not training:
        return None
    return {
        "users": spread(users, USERS),
        "training": [_episode(row) for row in spread(training, TRAINED)],
        "all": {"users": len(users), "training": len(training)},
    }


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, evenly from the first to the last, in their order."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def as_json(data: Any) -> Markup:
    """Data as JSON that may stand in a script of a page, whatever its texts are."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup("".join(UNSAFE.get(sign, sign) for sign in text))


def script(name: str) -> tuple[Markup, str]:
    """A script of this folder, and the source by which a page's policy lets it alone run."""
    text = resources.files("homeostat.report").joinpath(name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Markup(text), f"'sha256-{digest}'"


def _by_user(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per held-out user, with the episode of every arm."""
    users: dict[Any, dict[str, Any]] = {}
    for row in rows:
        user = users.setdefault(row["seed"], {"seed": row["seed"], "bot": row.get("bot")})
        user["bot"] = visible(str(user["bot"]))
        user.setdefault("arms", {})[visible(row["arm"])] = _episode(row)
    return list(users.values())


def _episode(row: Row) -> dict[str, Any]:
    """An episode with what is shown of it."""
    valence = (row.get("metrics") or {}).get("valence", row.get("valence"))
    if isinstance(valence, list):  # of every reply, in training
        known = [value for value in valence if value is not None]
        valence = sum(known) / len(known) if known else None
    kept = {key: row[key] for key in ("step", "sample", "seed") if key in row}
    bot = {"bot": visible(str(row["bot"]))} if "bot" in row else {}
    return kept | bot | {"valence": _short(valence), "turns": [_turn(t) for t in row["turns"]]}


def _turn(turn: Row) -> dict[str, Any]:
    kept = {key: turn[key] for key in TURN if turn.get(key) is not None}
    for key in ("text", "move", "role"):
        if key in kept:
            kept[key] = visible(str(kept[key]))
    if "signals" in kept:
        kept["signals"] = {k: v for k, v in kept["signals"].items() if k in SHOWN_SIGNALS}
    levels = ("affect", "perceived", "signals")
    return kept | {k: {n: _short(v) for n, v in kept[k].items()} for k in levels if k in kept}


def _short(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def _rows(path: Path) -> list[dict[str, Any]]:
    return kept_rows(path) if path.is_file() else []
