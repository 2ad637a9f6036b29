"""The report of steer and heal: figures where there is data, text escaped, nothing invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from homeostat.report.html import draw_stages
from homeostat.report.sentences import headline
from homeostat.report.steering_figures import draw_filter, draw_foundations, draw_trajectory

ESTIMATE = {"before": 0.5, "after": 0.9, "diff": 0.4, "ci95": [0.2, 0.6], "n": 24}


def stage(round_: int, name: str, **values: Any) -> dict[str, Any]:
    row = {
        "round": round_,
        "stage": name,
        "coherence": 0.9,
        "median_perplexity": 8.0,
        "foundations/care_nats": -2.0,
        "foundations/authority_nats": -2.2,
        "foundations/informedness": 0.2,
    }
    if name != "base":
        row["moved"] = {"trait_nats": ESTIMATE}
    return row | values


ROUNDS = [
    stage(0, "base"),
    stage(0, "prompted"),
    *(stage(n, name) for n in (1, 2) for name in ("steered", "healed")),
]
FILTERED = [{"round": 1, "dose": 4.0, "n": 32, "kept": 20, "fell": {"perplexity": 9, "tail": 5}}]


def assert_drawn(path: Path | None) -> None:
    assert path is not None
    pixels = plt.imread(path)
    assert pixels[..., :3].std() > 0.02, "blank"


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    summary = {"coherence_floor": 0.5}
    drawn = draw_stages(tmp_path, summary, ROUNDS, FILTERED)
    assert [path.stem for path in drawn] == ["trajectory", "filter", "foundations"]
    for path in drawn:
        assert_drawn(path)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    bare = [{k: v for k, v in row.items() if "foundations" not in k} for row in ROUNDS]
    assert draw_foundations(tmp_path, bare) is None
    assert draw_filter(tmp_path, []) is None
    assert_drawn(draw_trajectory(tmp_path, bare[:2], floor=0.5))


def test_missing_values_do_not_break_the_trajectory(tmp_path: Path) -> None:
    lost = stage(2, "healed", coherence=None, median_perplexity=None)
    nowhere = stage(1, "steered", moved={"trait_nats": ESTIMATE | {"diff": None, "ci95": None}})
    assert_drawn(draw_trajectory(tmp_path, [*ROUNDS[:2], nowhere, lost], floor=0.5))


def test_the_headline_names_every_answer() -> None:
    verdicts = [{"id": "Q0", "answer": "yes"}, {"id": "beats prompting", "answer": "no"}]
    summary = {"persona": {"name": "calm"}, "steps": 4, "verdicts": verdicts}
    assert headline(summary) == "Steering towards calm, 4 stages: Q0 yes; beats prompting no."
