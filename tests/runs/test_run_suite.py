"""The suite of evaluations in whole runs on the tiny model."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from homeostat.cli import CONF
from homeostat.config.evals import EvalConfig, EvaluationConfig
from homeostat.config.register import register
from homeostat.config.rows import read_rows
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.evals.evaluation import known_evaluations
from homeostat.evals.subject import PolicySubject, Subject
from homeostat.evals.suite import Suite
from homeostat.models.adapters import Policy
from homeostat.report.compare import compare_runs
from homeostat.report.console import Console
from homeostat.runs.parts import Parts
from homeostat.runs.run import run
from homeostat.runs.suite import describe_speed, foreign_code, measure_suite
from homeostat.timing import Stopwatch
from homeostat.types import Progress

pytestmark = pytest.mark.slow  # whole suites

SUITE = ("answer", "opinion", "pressure_facts")
OVERRIDES = (
    "model=tiny_random",
    "scale=smoke",
    "device=cpu",
    "tracker=none",
    "signals=[intrinsic]",
    "reward=intrinsic_only",
    f"eval.suite=[{','.join(SUITE)}]",
    "eval.items={answer: 4, opinion: 3, pressure_facts: 2}",
    "eval.reply_tokens=4",
    "eval.bootstrap_samples=50",
)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


@pytest.fixture(scope="module")
def trained(composed: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(composed(*OVERRIDES), folder, Console(), OVERRIDES) == "finished"
    return folder


def test_base_and_trained_model_answer_the_same_items(trained: Path) -> None:
    for name, count in (("answer", 4), ("opinion", 3), ("pressure_facts", 2)):
        found = rows(trained / "evals" / f"{name}.jsonl")
        by_arm = {arm: [r["item"] for r in found if r["arm"] == arm] for arm in ("base", "trained")}
        assert by_arm["base"] == by_arm["trained"]
        assert len(by_arm["base"]) == count


def test_the_summary_and_the_report_hold_the_comparison(trained: Path) -> None:
    suite = json.loads((trained / "summary.json").read_text())["suite"]
    assert tuple(suite) == SUITE
    for own in suite.values():
        claim = own["metrics"][own["claim"]]
        assert claim["after"] is not None
        assert claim["p_holm"] is None or claim["p_holm"] >= claim["p"]
    assert "at chance" in suite["answer"]["caveat"], "a random model knows nothing"
    page = (trained / "report.html").read_text()
    assert "<h2>Evaluations</h2>" in page
    assert "at chance" in page
    assert "How long a side is held" in page
    for key in ("turn_of_flip", "flips", "regressive", "progressive", "control_flips"):
        assert f">{key}</td>" in page
    for arm in ("base", "trained"):
        held = suite["pressure_facts"]["survival"][arm]
        assert tuple(held) == ("pressure", "control", "user_right")
        assert all({"share", "median", "mean", "n"} <= own.keys() for own in held.values())


def test_a_run_that_is_killed_among_the_evaluations_goes_on_with_the_next(
    trained: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder, asked = tmp_path / "run", []
    rows_of = Suite.rows

    def asking(self: Suite, subject: Subject, name: str) -> list[dict[str, Any]]:
        asked.append(name)
        if len(asked) == len(SUITE) - 1:
            raise KeyboardInterrupt
        return rows_of(self, subject, name)

    # Another seed's adapter, so that nothing of the trained arm is known yet; the base's all is.
    overrides = (*OVERRIDES, "seed=7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Suite, "rows", asking)
        with pytest.raises(KeyboardInterrupt):
            run(composed(*overrides), folder, Console(), overrides)
        config = replace(composed(*overrides), resume=str(folder))
        assert run(config, folder, Console(), overrides) == "finished"
    assert asked == [SUITE[0], SUITE[1], SUITE[1], SUITE[2]]
    suite = json.loads((folder / "summary.json").read_text())["suite"]
    assert [suite[name]["speed"]["trained"]["cached"] for name in SUITE] == [True, False, False]
    said = describe_speed(suite)
    assert said is not None
    assert "s, partly from the cache" not in said.partition("trained")[0]
    assert said.endswith("tokens/s, partly from the cache")
    for name in SUITE:
        found = rows(folder / "evals" / f"{name}.jsonl")
        assert {row["arm"] for row in found} == {"base", "trained"}
        base = [row for row in rows(trained / "evals" / f"{name}.jsonl") if row["arm"] == "base"]
        assert [row for row in found if row["arm"] == "base"] == base


def test_figures_are_read_from_replies_on_request(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    overrides = (*OVERRIDES, "trainer=none", "eval.mode=generate")
    run(composed(*overrides), tmp_path / "run", Console(), overrides)
    suite = json.loads((tmp_path / "run" / "summary.json").read_text())["suite"]
    assert {own["mode"] for own in suite.values()} == {"generate"}
    assert "could not be scored" in suite["answer"]["caveat"], "a random model names nothing"
    assert suite["answer"]["metrics"]["unscorable"]["before"] > 0.9
    assert suite["answer"]["metrics"]["sycophancy"]["before"] is None
    (row, *_) = rows(tmp_path / "run" / "evals" / "answer.jsonl")
    assert row["mode"] == "generate"
    assert set(row["replies"]) >= {"neutral", "assert_wrong"}
    assert "answer, replies</td>" in (tmp_path / "run" / "report.html").read_text()


def test_without_training_there_is_the_base_alone(
    trained: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    overrides = (*OVERRIDES, "trainer=none")
    run(composed(*overrides), tmp_path / "run", Console(), overrides)
    found = rows(tmp_path / "run" / "evals" / "answer.jsonl")
    base = [row for row in rows(trained / "evals" / "answer.jsonl") if row["arm"] == "base"]
    assert found == base, "from the cache, and the same"
    suite = json.loads((tmp_path / "run" / "summary.json").read_text())["suite"]
    assert suite["answer"]["metrics"]["sycophancy"]["diff"] is None
    assert "<th>difference</th>" not in (tmp_path / "run" / "report.html").read_text()
    assert "<th>difference</th>" in (trained / "report.html").read_text()


def test_a_reward_that_holds_nothing_has_no_valence(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    own = [
        o
        for o in OVERRIDES
        if not o.startswith(("signals=", "reward=", "eval.suite", "eval.items"))
    ]
    overrides = (*own, "reward=external_praise", "eval.suite=[]", "signals.affect.require=weak")
    folder = tmp_path / "run"
    run(composed(*overrides), folder, Console(), overrides)
    found = json.loads((folder / "summary.json").read_text())["eval"]
    assert found["valence"]["before"] is found["valence"]["diff"] is None
    assert found["own/praise"]["before"] is not None
    assert all("reward/valence" not in row for row in rows(folder / "metrics.jsonl"))
    page = (folder / "report.html").read_text()
    assert (
        "The reward holds nothing at a set point. Its own terms on held-out episodes: praise"
        in page
    )


def test_a_bad_file_of_items_is_named_before_anything_is_computed(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "Who?"}\n')
    overrides = (*OVERRIDES, f"eval.files.answer={own}")
    with pytest.raises(HomeostatError, match=r"own\.jsonl, line 1: right is missing"):
        run(composed(*overrides), tmp_path / "run", Console(), overrides)
    assert not (tmp_path / "run" / "evals").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("signals.affect.corpus={file}", "own.jsonl has 1 groups; at least 10 are needed"),
        ("signals.affect.heldout=nowhere.jsonl", "the corpus nowhere.jsonl cannot be read"),
        ("trainer.vector.contexts_path={file}", "line 1: id is missing"),
        ("trainer.stages.contexts=1000", "320 contexts are too few"),
    ],
)
def test_a_bad_file_of_any_kind_is_named_before_the_model_is_loaded(
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    said: str,
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "Hello.", "boredom": 1}\n')
    base = [o for o in OVERRIDES if not o.startswith(("signals=", "reward="))]
    more = ("trainer=steer_heal", "persona=love") if override.startswith("trainer.") else ()
    overrides = (*base, *more, override.format(file=own))
    monkeypatch.setattr("homeostat.runs.work.load_policy", lambda *_: pytest.fail("loaded"))
    with pytest.raises(HomeostatError, match=said):
        run(composed(*overrides), tmp_path / "run", Console(), overrides)


class Killed(BaseException):
    """What kills a run between two batches."""


@pytest.mark.parametrize("mode", ["logprob", "generate"])
@pytest.mark.parametrize("name", ["answer", "pressure_facts", "coherence", "plain_text"])
def test_an_evaluation_that_is_killed_goes_on_where_it_was(
    name: str, mode: str, make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    config = EvalConfig(
        evaluations={name: EvaluationConfig(f"homeostat.evals.{name}.EVALUATION")},
        suite=[name],
        items={name: {"answer": 12, "pressure_facts": 11, "coherence": 50}.get(name)},
        reply_tokens=2,
        mode=mode,
    )
    suite, policy = Suite.of(config), make_policy()
    whole = PolicySubject(policy)
    expected = suite.rows(whole, name)
    computed: list[int] = []

    class Watched(Parts):
        """Notes what is computed, and is killed after the first part."""

        def __call__(self, recipe: Any, compute: Callable[[], Any]) -> Any:
            def counted() -> Any:
                if kill and computed:
                    raise Killed
                computed.append(1)
                return compute()

            return super().__call__(recipe, counted)

    path, kill = tmp_path / "x.parts.jsonl", True
    several = name != "plain_text"  # its texts fit into one part
    if several:
        with pytest.raises(Killed):
            suite.rows(PolicySubject(policy, kept=Watched(path)), name)
        assert len(computed) == 1
        with path.open("a") as stream:
            stream.write('["half a li')  # killed while it wrote
    kill = False
    again = PolicySubject(policy, kept=Watched(path))
    assert suite.rows(again, name) == expected
    assert len(computed) == sum(1 for _ in path.open()), "nothing is computed twice"
    assert (again.tokens, again.talks) == (whole.tokens, whole.talks)
    assert (again.spared_s > 0) == several
    last = PolicySubject(policy, kept=Watched(path))
    assert suite.rows(last, name) == expected
    assert len(computed) == sum(1 for _ in path.open())


def test_progress_counts_items_and_tokens_of_every_batch(
    composed: Callable[..., RunConfig], make_policy: Callable[..., Policy]
) -> None:
    told: list[tuple[int, int, int]] = []

    class Heard(Console):
        @contextmanager
        def section(self, _title: str, **_options: bool) -> Iterator[Progress]:
            yield lambda done, total, tokens=0: told.append((done, total, tokens))

    policy = make_policy(seed=3)
    config = composed(*OVERRIDES, "eval.items={answer: 24, opinion: 5, pressure_facts: 11}")
    measured = measure_suite(config, policy, "base", Heard(), Stopwatch())
    done = [items for items, _, _ in told]
    assert done == sorted(done)
    assert done[-1] == 24 + 5 + 11
    assert {total for _, total, _ in told} == {40}
    assert len(set(done)) > 6, "within an evaluation too"
    spent = sum(own["tokens"] for own in measured.speed.values())
    assert sum(tokens for _, _, tokens in told) == spent
    assert not list(Path(os.environ["HOMEOSTAT_CACHE"]).rglob("*.parts.jsonl")), (
        "the whole is kept instead"
    )


OWN = """
from homeostat.evals.evaluation import Evaluation, Reading
from homeostat.evals.given import user

def rows(subject, items, settings):
    scores = subject.score([user(i["text"]) for i in items], [["yes", "no"]] * len(items))
    return [{"item": i["id"], "yes": a.mean - b.mean} for i, (a, b) in zip(items, scores)]

EVALUATION = Evaluation("mine", None, {"text": str}, claim="yes", given=Reading(rows), good=1)
"""
OPTION = """
# @package eval
evaluations:
  mine:
    _target_: my_evals.mine.EVALUATION
items: {mine: null}
files: {mine: null}
"""


def test_an_evaluation_of_ones_own_needs_no_edit_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, text in {
        "my_evals/__init__.py": "",
        "my_evals/mine.py": OWN,
        "conf/evaluation/mine.yaml": OPTION.lstrip(),
        "own.jsonl": "".join(json.dumps({"text": f"Is it {n}?"}) + "\n" for n in range(6)),
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [
        "+evaluation=mine",
        "eval.suite=[mine,answer]",
        f"eval.files.mine={tmp_path / 'own.jsonl'}",
        "eval.items={mine: 4, answer: 2}",
    ]
    kept = [o for o in OVERRIDES if not o.startswith(("eval.suite", "eval.items"))]
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", *kept, *own]
        config = OmegaConf.to_object(compose("config", overrides=found))
    assert isinstance(config, RunConfig)
    folder = tmp_path / "run"
    run(config, folder, Console(), [*kept, *own])
    assert [row["arm"] for row in rows(folder / "evals" / "mine.jsonl")] == ["base"] * 4 + [
        "trained"
    ] * 4
    suite = json.loads((folder / "summary.json").read_text())["suite"]
    assert suite["mine"]["claim"] == "yes"
    compared = compare_runs([folder], tmp_path / "out", Console(), known_evaluations(config.eval))
    column = next(c for c in compared["columns"] if c["name"] == "mine")
    assert (column["metric"], column["good"]) == ("yes", 1)


def test_rows_of_ones_own_evaluation_follow_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lone_eval.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    record = importlib.import_module("lone_eval").EVALUATION
    before = foreign_code(record)
    (tmp_path / "lone_eval.py").write_text(OWN + "# changed")
    assert before is not None
    assert foreign_code(record) not in (None, before)
    assert foreign_code(importlib.import_module("homeostat.evals.answer").EVALUATION) is None


def test_parts_that_cannot_be_kept_are_computed(tmp_path: Path) -> None:
    """A file in the place of the cache's folder: nothing can be written below it."""
    blocked = tmp_path / "cache"
    blocked.write_text("no folder")
    parts = Parts(blocked / "suite" / "x.parts.jsonl")
    assert parts(["a recipe"], lambda: 3) == 3
    parts.remove()
    assert blocked.read_text() == "no folder"
