"""Self-contained HTML pages: the template engine, and pictures as part of the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from homeostat.report.plain import interval, number, visible


def read_template(name: str, **filters: Callable[..., Any]) -> Template:
    """A template of this folder, which escapes every value; ``filters`` besides the usual ones."""
    engine = Environment(
        loader=PackageLoader("homeostat.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    engine.filters |= {"number": number, "interval": interval, **filters}
    return engine.get_template(name)


def _finalize(value: Any) -> Any:
    """What a template writes for a value: controls in text as symbols; own markup as it is."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def data_uri(picture: Path) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
