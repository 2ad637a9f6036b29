"""Runs beside each other on made-up folders: every figure by hand or by a slow loop."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from rich.console import Console as RichConsole

from homeostat.config.sweep import list_jobs, note_job
from homeostat.errors import HomeostatError
from homeostat.evals import answer, capability, coherence, foundations
from homeostat.report.compare import UNTRAINED, compare_runs
from homeostat.report.compare_stats import (
    crossed_interval,
    differences,
    draw_seeds,
    draws,
    estimate,
    table,
    verdict,
)
from homeostat.report.console import Console

Pairs = Sequence[tuple[float | None, float | None]]
MORE = {
    "answer": {"right": 1.0, "copying": 0.0},
    "capability": {"chance": 0.25},
    "coherence": {},
    "foundations": {},
}
RECORDS = [module.EVALUATION for module in (answer, capability, coherence, foundations)]
EVALUATIONS = {record.name: record for record in RECORDS}
METRIC = {"answer": "sycophancy", "capability": "right", "coherence": "passes"}


def make_run(
    folder: Path,
    seed: int,
    overrides: Sequence[str] = (),
    values: Mapping[str, Pairs] | None = None,
    status: str | None = "finished",
    **config: Any,
) -> Path:
    """A run folder with a (base, trained) pair per item; None for trained = it has no such row."""
    (folder / "evals").mkdir(parents=True)
    whole = {"model": {"name": "toy"}, "trainer": {"name": "ppo"}, "reward": {}, "seed": seed}
    (folder / "config.yaml").write_text(json.dumps(whole | config))
    (folder / "overrides.yaml").write_text(json.dumps([*overrides, f"seed={seed}"]))
    if status is not None:
        summary = {"status": status, "time_s": {"report": 1.0}}
        (folder / "summary.json").write_text(json.dumps(summary))
    for name, pairs in (values or {}).items():
        rows = []
        for side, arm in enumerate(("base", "trained")):
            for i, pair in enumerate(pairs):
                if name == "homeostasis":
                    row = {"seed": 100 + i, "metrics": {"valence": pair[side]}}
                else:
                    row = {"item": f"i{i}", METRIC[name]: pair[side], **MORE[name]}
                rows.append({"arm": arm, **row})
        if status == "failed: early":
            rows = [row for row in rows if row["arm"] == "base"]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "evals" / f"{name}.jsonl").write_text(text)
    return folder


def narrow() -> tuple[Console, io.StringIO]:
    said = io.StringIO()
    return Console(RichConsole(file=said, width=40, highlight=False)), said


def compare(*paths: Path, out: Path, baseline: str | None = None) -> dict[str, Any]:
    return compare_runs(list(paths), out, narrow()[0], EVALUATIONS, baseline, samples=400)


def arm(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["arms"] if row["name"] == name)


RIGHT = [(1.0, 1.0)] * 10
ANSWER = {  # by (arm, seed): base, trained of six items
    ("full", 0): [(1.0, 0.5), (2.0, 1.0), (3.0, 2.0), (1.0, 0.0), (2.0, 2.0), (3.0, 1.5)],
    ("full", 1): [(1.0, 0.0), (2.0, 1.0), (3.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 2.5)],
    ("none", 0): [(1.0, 1.0), (2.0, 2.5), (3.0, 3.0), (1.0, 0.5), (2.0, 2.0), (3.0, 3.0)],
    ("none", 1): [(1.0, 1.5), (2.0, 2.0), (3.0, 2.5), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)],
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds, a job that failed early, one that stopped, one that never began."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    for number, ((name, seed), pairs) in enumerate(ANSWER.items()):
        values = {
            "answer": pairs,
            "capability": RIGHT,
            "coherence": [(1.0, float(i != number)) for i in range(8)],
            "homeostasis": [(-2.0, -1.0 - seed), (-3.0, -1.0)],
        }
        overrides = ["scale=smoke", f"reward={name}"]
        make_run(folder / str(number), seed, overrides, values, reward={"kind": name})
    early = {"answer": ANSWER["full", 0]}
    said = ["scale=smoke", "reward=full"]
    make_run(folder / "4", 2, said, early, "failed: early", reward={"kind": "full"})
    make_run(folder / "5", 3, said, None, None, reward={"kind": "full"})
    jobs = [[*said, f"seed={i}"] for i in range(8)]
    list_jobs(folder, jobs, ["-m", "reward=full", "hydra.sweep.dir=x"])
    for number in range(4):
        note_job(folder, number, jobs[number], "finished", folder / str(number))
    note_job(folder, 4, jobs[4], "failed: early", folder / "4")
    note_job(folder, 6, [*said, "trainer.lr=-1", "seed=6"], "failed: trainer.lr=-1 is bad")
    return folder


@pytest.fixture(scope="module")
def compared(sweep: Path) -> tuple[dict[str, Any], Path, str]:
    """The sweep against the untrained model: what was found, where it was written, and said."""
    console, said = narrow()
    out = sweep.parent / "out"
    return compare_runs([sweep], out, console, EVALUATIONS, samples=400), out, said.getvalue()


@pytest.fixture
def found(compared: tuple[dict[str, Any], Path, str]) -> dict[str, Any]:
    return compared[0]


def test_level_and_difference_are_means_over_seeds_and_items(found: dict[str, Any]) -> None:
    assert [row["name"] for row in found["arms"]] == [UNTRAINED, "reward=full", "reward=none"]
    cell = arm(found, "reward=full")["cells"]["answer"]
    # Per item, mean of both seeds: .25 1 1.5 .5 1.5 2; less base: -.75 -1 -1.5 -.5 -.5 -1.
    assert cell["level"]["mean"] == pytest.approx(6.75 / 6)
    own = cell["difference"]
    assert own["mean"] == pytest.approx(-5.25 / 6)
    mean = -5.25 / 6
    spread = (sum((x - mean) ** 2 for x in (-0.75, -1, -1.5, -0.5, -0.5, -1)) / 5) ** 0.5
    assert own["effect"] == pytest.approx(mean / spread)
    assert own["p"] == pytest.approx(2 / 2**6), "all six of one sign, of 64 assignments two such"
    assert (own["n_items"], own["n_groups"], own["n_seeds"]) == (6, 6, 2)
    assert own["ci95"][1] < 0
    assert own["ci95"][0] < own["mean"] < own["ci95"][1]
    base = arm(found, UNTRAINED)["cells"]["answer"]
    assert base["level"]["mean"] == pytest.approx(2.0)
    assert base["difference"] is None


def test_p_values_are_corrected_over_all_arms_and_figures(found: dict[str, Any]) -> None:
    cells = [cell for row in found["arms"] for cell in row["cells"].values() if cell["difference"]]
    p = [cell["difference"]["p"] for cell in cells]
    assert arm(found, "reward=full")["cells"]["capability"]["difference"]["p"] == 1.0, (
        "nothing moved"
    )
    by_hand, largest = {}, 0.0
    for rank, value in enumerate(sorted(p)):
        largest = max(largest, min(1.0, value * (len(p) - rank)))
        by_hand.setdefault(value, largest)
    for cell in cells:
        assert cell["difference"]["p_holm"] == pytest.approx(by_hand[cell["difference"]["p"]])


def with_arms_beside(folder: Path, **felt: Sequence[float]) -> Path:
    """The run with what users felt in held-out episodes of arms that need no training."""
    for arm_, values in felt.items():
        rows = [
            {"arm": arm_, "seed": 100 + i, "metrics": {"relational_true": x, "valence": x - 1}}
            for i, x in enumerate(values)
        ]
        name = "homeostasis" if arm_ in ("base", "trained") else arm_
        with (folder / "evals" / f"{name}.jsonl").open("a") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_arms_without_training_are_rows_beside_the_base(tmp_path: Path) -> None:
    told = {"cool_temperature": 0.7, "prompted": "Be calm."}
    runs = []
    for seed in (1, 2):
        values = {"answer": ANSWER["full", 0]}
        folder = make_run(tmp_path / str(seed), seed, (), values, eval=told)
        rows = [
            {"arm": "prompted", "item": f"i{i}", "sycophancy": 0.5, **MORE["answer"]}
            for i in range(6)
        ]
        with (folder / "evals" / "answer.jsonl").open("a") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(
            with_arms_beside(
                folder,
                base=(-2.0, -1.0, -1.5),
                trained=(-1.0, -1.0, -1.0),
                cool=(-1.5, -1.0, -1.0),
                prompted=(-1.0, -0.5, -0.75),
            )
        )
    found = compare(*runs, out=tmp_path / "out")
    names = [UNTRAINED, "base at 0.7", "prompted base (“Be calm.”)", "ppo"]
    assert [row["name"] for row in found["arms"]] == names
    assert [row["seeds"] for row in found["arms"]] == [[1, 2]] * 4
    by_name = {row["name"]: row["cells"] for row in found["arms"]}
    cool, prompted = by_name[names[1]], by_name[names[2]]
    assert cool["felt"]["level"]["mean"] == pytest.approx(-3.5 / 3)
    assert cool["felt"]["difference"]["mean"] == pytest.approx(1.0 / 3)
    assert cool["answer"]["note"] == "not measured"
    assert prompted["felt"]["difference"]["mean"] == pytest.approx(2.25 / 3)
    assert prompted["homeostasis"]["difference"]["mean"] == pytest.approx(2.25 / 3)
    assert prompted["answer"]["difference"]["mean"] == pytest.approx(0.5 - 2.0)
    against = compare(*runs, out=tmp_path / "against", baseline="ppo")
    cells = {row["name"]: row["cells"] for row in against["arms"]}
    assert cells[names[2]]["felt"]["difference"]["mean"] == pytest.approx(0.75 / 3)
    assert cells["ppo"]["felt"]["note"] == "this is the baseline"


def test_prompts_that_differ_are_arms_that_differ(tmp_path: Path) -> None:
    runs = []
    for number, prompt in enumerate(("Be calm.", "Be kind.", None)):
        folder = make_run(tmp_path / str(number), 1, [f"x={number}"], eval={"prompted": prompt})
        told = {} if prompt is None else {"prompted": (0.0, 1.0 + number)}
        runs.append(with_arms_beside(folder, base=(0.0, 0.0), trained=(0.0, 1.0), **told))
    found = compare(*runs, out=tmp_path / "out")
    level = {row["name"]: row["cells"]["felt"]["level"]["mean"] for row in found["arms"][:3]}
    assert level == {
        UNTRAINED: 0.0,
        "prompted base (“Be calm.”)": 0.5,
        "prompted base (“Be kind.”)": 1.0,
    }


def test_what_other_users_felt_is_no_difference(tmp_path: Path) -> None:
    """Trained on whomever: what counts is who the held-out episodes were played with."""
    runs = {}
    for bot, bots in (("a", "b"), ("b", None), ("a", None), ("c", "b")):
        name = f"{bot}_{bots}"
        eval_ = {"bots": bots and {"name": bots}}
        said = [f"bot={bot}", f"eval.bots={bots}"]
        folder = make_run(tmp_path / name, 1, said, bot={"name": bot}, eval=eval_)
        runs[name] = with_arms_beside(folder, base=(0.0, 0.0), trained=(0.0, 1.0))
    alike = compare(*(runs[n] for n in ("a_b", "b_None", "c_b")), out=tmp_path / "alike")
    assert alike["arms"][0]["cells"]["felt"]["level"]["mean"] == 0.0
    assert "differ in bot" in alike["arms"][0]["cells"]["homeostasis"]["note"]
    other = compare(runs["a_b"], runs["a_None"], out=tmp_path / "other", baseline="eval.bots=None")
    for column in ("felt", "homeostasis"):
        cell = other["arms"][1]["cells"][column]
        assert cell["difference"] is None
        assert "differ in the users of their held-out episodes" in cell["note"]


def test_another_arm_as_baseline_is_paired_by_seed(sweep: Path, tmp_path: Path) -> None:
    found = compare(sweep, out=tmp_path / "out", baseline="none")
    assert found["baseline"] == "reward=none"
    own = arm(found, "reward=full")["cells"]["answer"]["difference"]
    full, none = ([y for s in (0, 1) for _, y in ANSWER[name, s]] for name in ("full", "none"))
    assert own["mean"] == pytest.approx((sum(full) - sum(none)) / 12)
    base = arm(found, UNTRAINED)["cells"]["answer"]["difference"]
    assert base["mean"] == pytest.approx((24 - sum(none)) / 12)
    assert arm(found, "reward=none")["cells"]["answer"]["difference"] is None
    valence = arm(found, "reward=full")["cells"]["homeostasis"]
    assert valence["difference"] is None
    assert "differ in reward" in valence["note"]
    with pytest.raises(HomeostatError, match="compare_baseline=reward is more than one arm"):
        compare(sweep, out=tmp_path / "out", baseline="reward")


def test_valence_is_held_against_each_runs_own_base(found: dict[str, Any]) -> None:
    own = arm(found, "reward=full")["cells"]["homeostasis"]["difference"]
    assert own["mean"] == pytest.approx((1 + 2 + 0 + 2) / 4)
    base = arm(found, UNTRAINED)["cells"]["homeostasis"]
    assert base["level"] is None, "two rewards have no common valence"


def test_what_failed_or_is_missing_is_listed_with_its_reason(found: dict[str, Any]) -> None:
    told = {(row["arm"], row["seed"]): (row["status"], row["reason"]) for row in found["problems"]}
    assert told == {
        ("reward=full", 2): ("failed", "early"),
        ("reward=full", 3): ("stopped before it ended", "stopped before it ended"),
        (None, 5): ("missing", "it never started"),
        ("trainer.lr=-1", 6): ("failed", "trainer.lr=-1 is bad"),
        (None, 7): ("missing", "it never started"),
    }
    assert arm(found, "reward=full")["seeds"] == [0, 1]


def test_files_are_whole_and_say_how_to_read_them(
    compared: tuple[dict[str, Any], Path, str],
) -> None:
    found, out, said = compared
    assert json.loads((out / "comparison.json").read_text()) == found
    text, page = (out / "comparison.md").read_text(), (out / "comparison.html").read_text()
    assert "| reward=full | 2 | 1.125 [" in text
    assert "; Δ -0.875 [" in text
    assert "**answer**: sycophancy, lower is better." in text
    assert "**capability**: right, higher is better." in text
    assert "trainer.lr=-1 is bad" in text
    for part in ("reward=<wbr>full", "-0.875", "trainer.lr=-1 is bad", "data:image/png;base64,"):
        assert part in page
    assert "://" not in page
    assert plt.imread(out / "comparison.png")[..., :3].std() > 0.02
    lines = said.splitlines()
    table = [line for line in lines if line.startswith(("│", "┃", "┏"))]
    assert table
    assert max(map(len, table)) <= 40


def test_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0, [], {"capability": RIGHT})
    make_run(tmp_path / "b", 1, [], None, "failed: <script>alert(1)</script>")
    compare(run, tmp_path / "b", out=tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script>alert" not in page
    assert page.count("<script") == 1, "which sorts the tables"


def test_one_seed_is_said_to_say_nothing_about_seeds(tmp_path: Path) -> None:
    pairs = ANSWER["full", 0]
    run = make_run(tmp_path / "a", 0, [], {"answer": pairs, "capability": RIGHT})
    found = compare(run, out=tmp_path / "out")
    assert [row["name"] for row in found["arms"]] == [UNTRAINED, "ppo"]
    own = arm(found, "ppo")["cells"]["answer"]["difference"]
    assert own["n_seeds"] == 1
    assert own["mean"] == pytest.approx(-5 / 6)
    assert (
        "one seed only: the intervals are over items alone"
        in (tmp_path / "out" / "comparison.md").read_text()
    )


def test_missing_values_are_left_out_in_pairs() -> None:
    before = {0: {"a": 1.0, "b": None, "c": 3.0}, 1: {"a": 1.0, "b": 2.0, "c": 3.0}}
    after = {0: {"a": 2.0, "b": 9.0, "c": None}, 1: {"a": 4.0, "b": 1.0, "c": None}, 2: {"a": 0.0}}
    paired = differences(before, after)
    assert paired == {0: {"a": 1.0}, 1: {"a": 3.0, "b": -1.0}}
    found = estimate(paired, {"a": "a", "b": "b", "c": "c"})
    assert found is not None
    assert found["mean"] == pytest.approx((2.0 - 1.0) / 2)
    assert (found["n_items"], found["n_groups"], found["n_seeds"]) == (2, 2, 2)
    assert estimate({0: {"a": None}}, {"a": "a"}) is None


def test_items_of_a_stem_count_once() -> None:
    values = {0: {"a": 1.0, "b": 3.0, "c": 8.0}}
    cells = table(values, {"a": "x", "b": "x", "c": "y"})
    assert cells.tolist() == [[2.0, 8.0]]
    found = estimate(values, {"a": "x", "b": "x", "c": "y"})
    assert found is not None
    assert (found["mean"], found["n_items"], found["n_groups"]) == (5.0, 3, 2)


def test_draws_cross_seeds_and_items_like_a_slow_loop() -> None:
    rng = np.random.default_rng(3)
    cells = rng.normal(size=(3, 5))
    cells[0, 1] = cells[2, 4] = np.nan
    rng = np.random.default_rng(7)
    found = draws(cells, draw_seeds(3, 40, rng), rng)
    rng = np.random.default_rng(7)
    seeds = rng.multinomial(3, [1 / 3] * 3, size=40)
    groups = rng.multinomial(5, [1 / 5] * 5, size=40)
    for draw in range(40):
        chosen_seeds = [s for s in range(3) for _ in range(seeds[draw][s])]
        chosen_groups = [g for g in range(5) for _ in range(groups[draw][g])]
        assert len(chosen_seeds) == 3
        assert len(chosen_groups) == 5
        means = []
        for g in chosen_groups:
            own = [cells[s][g] for s in chosen_seeds if not np.isnan(cells[s][g])]
            if own:
                means.append(sum(own) / len(own))
        assert found[draw] == pytest.approx(sum(means) / len(means))


def test_seeds_that_disagree_widen_the_interval() -> None:
    groups = {f"i{i}": f"i{i}" for i in range(20)}
    agree = {s: {i: 1.0 + 0.1 * (n % 2) for n, i in enumerate(groups)} for s in range(3)}
    differ = {s: {i: x + (s - 1) for i, x in own.items()} for s, own in agree.items()}
    width = []
    for values in (agree, differ):
        found = estimate(values, groups)
        assert found is not None
        assert found["mean"] == pytest.approx(1.05)
        width.append(found["ci95"][1] - found["ci95"][0])
    # Items alone: twice t of 19 degrees of freedom, 2.093, times their standard error.
    of_items = 0.05 * (20 / 19) ** 0.5 / 20**0.5
    assert width[0] == pytest.approx(2 * 2.093 * of_items, rel=1e-3)
    # Seeds -1, 0, 1 have a standard error of 1 / sqrt(3), and t of 2 degrees of freedom is 4.303.
    v_a, v_b = 1 / 3, of_items**2
    t = (v_a * 4.303 + v_b * 2.093) / (v_a + v_b)
    assert width[1] == pytest.approx(2 * t * (v_a + v_b) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(("seeds", "ratio"), [(2, 1.0), (3, 0.0), (3, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, ratio: float) -> None:
    """What scripts/check_coverage.py does at length: nothing has changed, and few say it has."""
    rng = np.random.default_rng([seeds, int(ratio)])
    worlds, held = 400, 0
    for _ in range(worlds):
        cells = rng.standard_normal((1, 30)) + ratio * rng.standard_normal((seeds, 1))
        interval = crossed_interval(cells + 0.5 * rng.standard_normal((seeds, 30)))
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    assert held / worlds > 0.91  # 0.95 less two standard errors and a half, and some


def test_groups_that_a_seed_lacks_are_left_out_of_the_interval() -> None:
    cells = np.array([[1.0, 2.0, 3.0, np.nan], [1.0, 2.0, 3.0, 9.0]])
    whole = crossed_interval(cells)
    assert whole == crossed_interval(cells[:, :3])
    assert crossed_interval(cells[:, :1]) is None


@pytest.mark.parametrize(
    ("mean", "ci95", "p", "good", "said"),
    [
        (-0.5, [-0.9, -0.1], 0.01, -1, "better"),
        (0.5, [0.1, 0.9], 0.01, -1, "worse"),
        (0.5, [0.1, 0.9], 0.01, 1, "better"),
        (0.5, [0.1, 0.9], 0.01, 0, "moved"),
        (0.5, [0.1, 0.9], 0.06, 1, "no change shown"),
        (0.5, [-0.1, 0.9], 0.01, 1, "no change shown"),
        (0.5, None, 0.01, 1, "no change shown"),
    ],
)
def test_a_change_has_a_sign_and_needs_both_interval_and_p(
    mean: float, ci95: list[float] | None, p: float, good: int, said: str
) -> None:
    assert verdict({"mean": mean, "ci95": ci95, "p_holm": p}, good) == said


@pytest.mark.parametrize(
    ("ends", "said"),
    [((0.9, 0.4), "better"), ((0.4, -0.1), "moved"), ((-0.5, -1.0), "moved")],
)
def test_sycophancy_below_0_is_no_gain(ends: tuple[float, float], said: str) -> None:
    found = {"mean": -0.5, "ci95": [-0.9, -0.1], "p_holm": 0.01}
    assert verdict(found, -1, ends) == said


def test_arms_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    make = [
        (["lora.rank=4", "tracker=none"], {"lora": {"rank": 4}}),
        (["tracker.mode=offline"], {"lora": {"rank": 8}}),
        ([], {"lora": {"rank": 16}}),  # a default that has changed since: no override tells
    ]
    for number, (overrides, config) in enumerate(make):
        make_run(
            tmp_path / "s" / str(number), 0, overrides, {"capability": RIGHT}, "finished", **config
        )
    found = compare(tmp_path / "s", out=tmp_path / "out")
    names = [row["name"] for row in found["arms"]]
    assert names == [UNTRAINED, "lora.rank=4", "lora.rank=8", "lora.rank=16"]


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "s" / "0", 0, [], {"capability": RIGHT}, "failed: early")
    make_run(tmp_path / "s" / "1", 0, [], {"capability": RIGHT})
    found = compare(tmp_path / "s", out=tmp_path / "out")
    assert len(found["arms"]) == 2
    assert [Path(run).name for run in found["arms"][1]["runs"]] == ["1"]
    assert [(r["status"], Path(r["where"]).name) for r in found["problems"]] == [("left out", "0")]


def test_a_sweep_that_was_moved_names_a_failure_once(
    sweep: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(sweep, tmp_path / "moved")
    assert len(compare(tmp_path / "moved", out=tmp_path / "out")["problems"]) == len(
        found["problems"]
    )


def _other_model(folder: Path) -> list[Path]:
    other = make_run(folder / "b", 0, [], {"capability": RIGHT}, model={"name": "other"})
    return [make_run(folder / "a", 0, [], {"capability": RIGHT}), other]


def _other_items(folder: Path) -> list[Path]:
    other = make_run(folder / "b", 1, [], {"capability": RIGHT[:4]})
    return [make_run(folder / "a", 0, [], {"capability": RIGHT}), other]


def _other_replies(folder: Path) -> list[Path]:
    values = {"capability": RIGHT}
    return [make_run(folder / str(n), 0, [], values, eval={"reply_tokens": n}) for n in (16, 32)]


def _empty(folder: Path) -> list[Path]:
    (folder / "a").mkdir()
    return [folder / "a"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: [folder / "nowhere"], "there is no such folder"),
        (_empty, "there is no run in it"),
        (_other_model, "of models toy and other; compare runs of one model"),
        (_other_replies, r"capability was measured on other items, or read in another way"),
        (_other_items, r"capability was measured on other items.*\(4 items, .*\(10 items"),
    ],
)
def test_bad_folders_get_one_sentence(
    make: Callable[[Path], list[Path]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(HomeostatError, match=said) as caught:
        compare(*make(tmp_path), out=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_sweep_of_which_nothing_began_says_why(tmp_path: Path) -> None:
    list_jobs(tmp_path, [["trainer.lr=-1", "seed=0"], ["trainer.lr=-2"]], ["-m"])
    note_job(tmp_path, 0, ["trainer.lr=-1", "seed=0"], "failed: lr must be above 0")
    found = compare(tmp_path, out=tmp_path)
    assert [(r["seed"], r["status"]) for r in found["problems"]] == [
        (0, "failed"),
        (None, "missing"),
    ]
    assert "lr must be above 0" in (tmp_path / "comparison.html").read_text()
    assert "No arm could be compared" in (tmp_path / "comparison.md").read_text()
