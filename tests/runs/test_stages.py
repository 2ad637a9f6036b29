"""Whole runs of steer and heal on the tiny model: what they leave behind, and how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from homeostat.config.register import build
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.evals.stages import Stages, compare_arms, stage_figures
from homeostat.models.adapter_files import load_adapter
from homeostat.models.load import BaseModel
from homeostat.models.placement import place
from homeostat.report.console import Console
from homeostat.runs.before_healing import doubts_about_readings
from homeostat.runs.export import export
from homeostat.runs.run import run
from homeostat.runs.stages import SteeringWing
from homeostat.runs.work import load_policy
from homeostat.steering.loop import SteerHeal
from homeostat.timing import Stopwatch

pytestmark = pytest.mark.slow  # whole runs of steer and heal

OVERRIDES = (
    "model=tiny_random",
    "scale=smoke",
    "device=cpu",
    "tracker=none",
    "trainer=steer_heal",
    "persona=calm",
    "trainer.batch_size=6",
    "trainer.max_new_tokens=8",
    "trainer.vector.contexts=8",
    "trainer.dose.kind=grid",
    "trainer.dose.values=[2.0]",
    "trainer.heal.epochs=1",
    "trainer.stages.contexts=4",
    "trainer.stages.max_new_tokens=8",
    "trainer.stages.vignettes=0",
    "trainer.stages.prompts=2",
    "trainer.stages.coherence_floor=0",
    "trainer.stages.bootstrap_samples=50",
    # A random model says nothing that words could be judged by.
    *(
        f"trainer.{gates}.{name}=null"
        for gates in ("stages.gates", "filter")
        for name in (
            *("max_perplexity", "max_tail_perplexity", "min_perplexity"),
            *("max_repetition", "min_distinct", "min_diversity", "min_tokens"),
        )
    ),
)
FILES = ("metrics.jsonl", "episodes.jsonl", "rounds.jsonl", "heal.jsonl", "evals/stages.jsonl")


class Killed(BaseException):
    """Stands for the kill: nothing in the package catches it."""


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def whole(composed: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(composed(*OVERRIDES), folder, Console(), OVERRIDES) == "finished"
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_every_round_and_stage_has_its_row(whole: Path) -> None:
    found = rows(whole / "rounds.jsonl")
    places = [(row["round"], row["stage"]) for row in found]
    healed = [(n, stage) for n in (1, 2) for stage in ("steered", "healed")]
    assert places == [(0, "base"), (0, "prompted"), *healed]
    for row in found:
        assert row["trait_nats"] is not None
        assert 0 <= row["coherence"] <= 1
        assert ("moved" in row) == (row["stage"] != "base")
    assert found[0]["kl_nats_per_token"] == pytest.approx(0, abs=1e-6)
    assert found[2]["steer/cosine_to_first"] == pytest.approx(1)
    assert found[3]["heal/steps"] > 0


def test_arms_answer_the_same_items(whole: Path) -> None:
    by_arm: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for row in rows(whole / "evals" / "stages.jsonl"):
        items = by_arm.setdefault((row["round"], row["stage"]), [])
        items.append((row["kind"], row["item"]))
    assert len(by_arm) == 6
    assert len({tuple(items) for items in by_arm.values()}) == 1


def test_the_folder_holds_vectors_adapters_diary_and_verdicts(whole: Path) -> None:
    assert sorted(p.name for p in (whole / "vectors").iterdir()) == [
        "round_1.safetensors",
        "round_2.safetensors",
    ]
    assert (whole / "adapters" / "round_2" / "adapter_model.safetensors").is_file()
    diary = rows(whole / "evals" / "diary.jsonl")
    assert len({row["question"] for row in diary}) == 1
    assert [row["stage"] for row in diary] == ["base", "prompted", *["steered", "healed"] * 2]
    found = summary(whole)
    assert [v["id"] for v in found["verdicts"]] == ["Q0", "Q1", "Q2", "Q3", "beats prompting"]
    assert found["steps"] == 4
    assert found["persona"]["name"] == "calm"
    assert found["planned_mb"] > 0
    kept = rows(whole / "evals" / "filter.jsonl")
    assert [(row["round"], row["n"]) for row in kept] == [(1, 6), (2, 6)]


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("homeostat.steering.loop.SteerHeal.measure_base", 1),
        ("homeostat.runs.stages.keep_arm", 3),
        ("homeostat.steering.heal.Heal.run", 1),
        ("homeostat.runs.checkpoint.Checkpoints.save", 2),
        ("homeostat.steering.heal.Heal.run", 2),
        ("homeostat.runs.checkpoint.Checkpoints.save", 4),
    ],
)
def test_a_killed_run_goes_on_at_the_stage_that_was_under_way(
    target: str,
    call: int,
    whole: Path,
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pydoc import locate

    owner, _, name = target.rpartition(".")
    function, calls = getattr(locate(owner), name), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return function(*arguments, **options)

    config, folder = composed(*OVERRIDES), tmp_path / "run"
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / "cache"))
    # The figures take longer than the run, and say nothing here.
    monkeypatch.setattr("homeostat.report.html.write_report", lambda folder: folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, dying)
        with pytest.raises(Killed):
            run(config, folder, Console(), OVERRIDES)
    run(replace(config, resume=str(folder)), folder, Console(), OVERRIDES)
    for file in FILES:
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    for name in ("adapter_model.safetensors", "round_2/adapter_model.safetensors"):
        own, expected = (load_file(f / "adapters" / name) for f in (folder, whole))
        assert all(torch.equal(own[key], weight) for key, weight in expected.items())
    assert summary(folder)["verdicts"] == summary(whole)["verdicts"]


def test_arms_of_a_sweep_share_what_was_measured_before_the_first_healing(
    whole: Path,
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("homeostat.report.html.write_report", lambda folder: folder)
    measure, calls = Stages.measure, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return measure(*arguments, **options)

    monkeypatch.setattr(Stages, "measure", counted)
    own = tmp_path / "contexts.jsonl"
    lines = files("homeostat").joinpath("data/contexts.jsonl").read_text().splitlines()
    arms = {
        "other barrier": "trainer.barrier.aggregate=max",
        "other seed": "seed=5",
        "own contexts": f"trainer.vector.contexts_path={own}",
        "changed contexts": f"trainer.vector.contexts_path={own}",
    }
    spent = {}
    for number, (name, override) in enumerate(arms.items()):
        own.write_text("\n".join(lines[number:]) + "\n")
        before, overrides = calls, (*OVERRIDES, override, "trainer.max_steps=1")
        run(composed(*overrides), tmp_path / name, Console(), overrides)
        spent[name] = calls - before
    assert spent == {"other barrier": 1, "other seed": 4, "own contexts": 4, "changed contexts": 4}
    first = [
        [row for row in rows(folder / "evals" / "stages.jsonl") if row["stage"] != "healed"]
        for folder in (whole, tmp_path / "other barrier")
    ]
    assert first[0][: len(first[1])] == first[1]


def test_a_run_is_exported_as_one_model_or_one_adapter(
    whole: Path, composed: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "homeostat.cli", f"export={whole}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=whole.parent)
    assert "merged weights differ by at most" in done.stdout
    config = composed(*OVERRIDES)
    policy = load_policy(config, place(config.device, config.dtype), Console(), Stopwatch())
    load_adapter(policy, whole / "adapters")
    ids = torch.arange(60, 90)[None]
    with torch.no_grad():
        expected = policy.model(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(whole / "export" / "merged")
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
        export(replace(config, export_as="adapter"), whole, Console())
        base = build(config.model, BaseModel, device=torch.device("cpu"), dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base.model, str(whole / "export" / "adapter"))
        assert torch.allclose(adapted(ids).logits, expected, atol=1e-4)
    monkeypatch.setattr("homeostat.runs.export.verify_bake", lambda *_: 0.5)
    with pytest.raises(HomeostatError, match=r"by 0\.5 nats, and float32 allows 0\.001"):
        export(config, whole, Console())


def test_adapters_that_are_not_there_or_of_another_model_are_not_exported(
    whole: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(HomeostatError, match="there are no adapters in it"):
        export(composed(*OVERRIDES), tmp_path, Console())
    other = composed(*OVERRIDES, "model.hidden_size=64")
    with pytest.raises(HomeostatError, match="does not fit this model"):
        export(other, whole, Console())


def test_a_starved_run_ends_with_counts_and_a_report(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    overrides = (*OVERRIDES[:-1], "trainer.filter.min_tokens=100")
    status = run(composed(*overrides), tmp_path / "run", Console(), overrides)
    assert status.startswith("starved: 0 of 6 completions passed the filter")
    assert "By gate: short 6" in status
    found = summary(tmp_path / "run")
    assert found["status"] == status
    assert {v["answer"] for v in found["verdicts"]} == {"cannot tell"}
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(rows(tmp_path / "run" / "rounds.jsonl")) == 2, "base and prompted"


def test_a_broken_model_stops_the_loop(composed: Callable[..., RunConfig], tmp_path: Path) -> None:
    overrides = (*OVERRIDES, "trainer.stages.coherence_floor=0.99", "trainer.stages.vignettes=1")
    config = composed(*overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("homeostat.evals.stages.is_coherent", lambda _failed: False)
        status = run(config, tmp_path / "run", Console(), overrides)
    assert status.startswith("broken: 0.00 of the healed model's replies are coherent in round 1")
    found = summary(tmp_path / "run")
    assert found["steps"] == 2
    assert all(r["foundations/care_nats"] < 0 for r in rows(tmp_path / "run" / "rounds.jsonl"))
    assert "yes" not in [v["answer"] for v in found["verdicts"][1:]]


@pytest.mark.parametrize("good_again", [True, False])
def test_a_round_that_is_not_good_is_dropped_and_the_loop_goes_on(
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    good_again: bool,
) -> None:
    overrides = (*OVERRIDES, "trainer.adopt=good", "trainer.stages.coherence_floor=0.9")
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / "cache"))
    judged = 0

    def coherent(_failed: Any) -> bool:
        """All four replies of base, prompted and steered are; none of the first healed student."""
        nonlocal judged
        judged += 1
        return judged <= 12 or (good_again and judged > 16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("homeostat.evals.stages.is_coherent", coherent)
        folder = tmp_path / "run"
        assert run(composed(*overrides), folder, Console(), overrides) == "finished"
    last = "healed" if good_again else "dropped"
    places = [(row["round"], row["stage"]) for row in rows(folder / "rounds.jsonl")]
    assert places[2:] == [(1, "steered"), (1, "dropped"), (2, "steered"), (2, last)]
    assert not (folder / "adapters" / "round_2").exists(), "the second learnt in its place"
    weights = load_file(folder / "adapters" / "adapter_model.safetensors")
    learnt = [bool(w.any()) for name, w in weights.items() if "lora_B" in name]
    assert all(learnt) if good_again else not any(learnt)
    answers = {v["answer"] for v in summary(folder)["verdicts"][1:]}
    assert good_again or answers == {"cannot tell"}
    assert (folder / "figures" / "trajectory.png").is_file()


def test_the_opposite_dose_and_a_prompted_teacher_are_measured(
    composed: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeostat.report.html.write_report", lambda folder: folder)
    steering, doses = SteerHeal.steering, []
    monkeypatch.setattr(
        SteerHeal, "steering", lambda self, dose: (doses.append(dose), steering(self, dose))[1]
    )
    found = {}
    beside = (
        "eval=homeostasis",  # no suite, so that nothing else has made the folder of evaluations
        *("trainer.stages.reversed=true", "trainer.stages.contrary=true"),
        *("trainer.stages.ablated=true", "trainer.stages.examples=2", "trainer.stages.turns=2"),
        "trainer.stages.lines=['Be {persona}!','Speak as {persona}.']",
    )
    for label, name in (("beside", beside), ("told", ("trainer.teacher=prompted",))):
        overrides, folder = (*OVERRIDES, *name, "trainer.max_steps=1"), tmp_path / label
        assert run(composed(*overrides), folder, Console(), overrides) == "finished"
        found[label] = {row["stage"]: row for row in rows(folder / "rounds.jsonl")}
    both, told = found.values()
    arms = ["base", "prompted", "examples", "contrary", "steered", "reversed", "healed"]
    assert list(both) == [*arms, "ablated", "base ablated"]
    lines = rows(tmp_path / "beside" / "rounds.jsonl")
    given = json.loads((tmp_path / "beside" / "evals" / "examples.json").read_text())
    assert len(given) == 2
    assert given[0]["shown_nats"] >= given[1]["shown_nats"], "those that show most"
    items = rows(tmp_path / "beside" / "evals" / "stages.jsonl")
    talks = [row for row in items if row["kind"] == "talk"]
    assert len(talks) == 2 * len(lines)
    first = {(r["round"], r["stage"], r["item"]): r for r in items if r["kind"] == "shown"}
    for talk in talks:
        assert len(talk["by_turn"]) == len(talk["texts"]) == 2
        assert talk["last_nats"] == talk["by_turn"][-1] != talk["by_turn"][0]
        alone = first[talk["round"], talk["stage"], talk["item"]]
        assert talk["texts"][0] == alone["text"]
        assert talk["by_turn"][0] == pytest.approx(alone["shown_nats"], abs=1e-5)
    for name in ("shown_shift", "shown_neutral_nats", "shown_last_turn_nats"):
        values = [row[name] for row in lines]
        assert len(set(values)) > len(values) / 2, "most arms say something else"
    assert both["examples"]["trait_nats"] != both["prompted"]["trait_nats"]
    assert sum(row["stage"] == "base ablated" for row in lines) == 1
    assert both["ablated"]["trait_nats"] != both["healed"]["trait_nats"]
    assert both["base ablated"]["trait_nats"] not in (
        both["base"]["trait_nats"],
        both["ablated"]["trait_nats"],
    )
    judged = json.loads((tmp_path / "beside" / "evals" / "prompting.json").read_text())
    assert [row["line"] for row in judged][1:] == ["Be {persona}!", "Speak as {persona}."]
    contrary = [row for row in lines if row["stage"] == "contrary"]
    assert [row["round"] for row in contrary] == [0, 1], "the base's, and the student's"
    assert contrary[0]["shown_nats"] != both["prompted"]["shown_nats"]
    assert doses == [2.0, -2.0], "as the steered stage, and then the opposite"
    moved = [both[stage]["moved"]["trait_nats"]["diff"] for stage in ("steered", "reversed")]
    assert moved[0] != moved[1]
    # Before any healing the prompted student is the prompted base.
    for name in ("trait_nats", "shown_nats", "kl_nats_per_token"):
        assert told["steered"][name] == pytest.approx(told["prompted"][name])


def test_how_selectively_a_dose_moves_the_foundations_is_in_table_and_report(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    asked = ("trainer.stages.reversed=true", "trainer.stages.vignettes=1", "trainer.max_steps=1")
    overrides = (*OVERRIDES, *asked, "+persona.foundations.care=1", "eval=homeostasis")
    assert run(composed(*overrides), tmp_path, Console(), overrides) == "finished"
    found = {row["stage"]: row.get("selectivity") for row in rows(tmp_path / "rounds.jsonl")}
    selective = found.pop("reversed")
    assert selective["n"] == 7
    assert selective["caveat"].startswith("not interpretable: 7 scored vignettes are too few")
    assert 0 < selective["coherence"] <= 1
    assert selective["score"] != 0
    assert set(found.values()) == {None}
    assert f"{selective['score']:+.3f}" in (tmp_path / "report.html").read_text()


def test_steering_online_measures_its_student_and_answers(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    own = ("trainer=steer_online", "trainer.batch_size=4", "trainer.max_steps=3")
    kept = [o for o in OVERRIDES if not o.startswith(("trainer=", "trainer.batch", "trainer.dose"))]
    overrides = (*own, *kept, "trainer.measure_every=2")
    folder = tmp_path / "run"
    assert run(composed(*overrides), folder, Console(), overrides) == "finished"
    found = rows(folder / "rounds.jsonl")
    assert [(row["round"], row["stage"]) for row in found[2:]] == [(2, "healed"), (3, "healed")]
    assert {row["round"] for row in rows(folder / "evals" / "filter.jsonl")} == {1, 2, 3}
    assert len(rows(folder / "metrics.jsonl")) == 3
    verdicts = {v["id"]: v for v in summary(folder)["verdicts"]}
    assert verdicts["Q1"]["answer"] == "cannot tell"
    assert "no steered student" in verdicts["Q1"]["why"]
    assert (folder / "report.html").is_file()
    more = replace(
        composed(*overrides, "trainer.max_steps=4"), resume=str(folder), resume_override=True
    )
    assert run(more, folder, Console(), overrides) == "finished"
    assert [row["round"] for row in rows(folder / "rounds.jsonl")[2:]] == [2, 3, 4]


def test_whether_the_trait_shows_is_validated_before_anything_is_trained(whole: Path) -> None:
    found = json.loads((whole / "evals" / "shown.json").read_text())
    assert found["n"] == 32, "both sides of all held-out prompts"
    for name in ("shown", "shift", "tokens", "first_person"):
        assert 0 <= found[name]["auroc"] <= 1
    by_arm = [row["shown_nats"] for row in rows(whole / "rounds.jsonl")]
    assert len({round(value, 6) for value in by_arm}) == 6, "every arm says something else"


@pytest.mark.parametrize(
    ("shown", "length", "says"),
    [
        ((0.9, [0.8, 1.0]), 0.6, None),
        ((0.6, [0.45, 0.75]), 0.5, r"cannot be read on this model.*0\.600 \[\+0\.450"),
        ((0.9, None), 0.5, "cannot be read"),
        ((0.9, [0.8, 1.0]), 0.95, "length alone tells .* as well"),
        ((0.9, [0.8, 1.0]), 0.05, "length alone tells .* as well"),
    ],
)
def test_when_the_reading_of_replies_is_doubted(
    shown: tuple[float, Any], length: float, says: str | None
) -> None:
    found = {
        "shown": {"auroc": shown[0], "ci95": shown[1]},
        "tokens": {"auroc": length, "ci95": None},
        "first_person": {"auroc": 0.5, "ci95": None},
    }
    doubts = doubts_about_readings(found)
    assert len(doubts) == (says is not None)
    assert says is None or re.search(says, doubts[0])
    sure = {"auroc": 0.99, "ci95": [0.9, 1.0]}
    second = doubts_about_readings({**found, "shown": sure, "shift": found["shown"]})
    assert second == [doubt.replace("shown_nats", "shown_shift") for doubt in doubts]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("trainer.stages.turns=3", r"turns=3 asks .* 2 are there \(trainer.stages.prompts=2, calm"),
        ("trainer.stages.examples=2", "lines and examples are judged .* calm has none"),
        ("trainer.stages.lines=['Be {persona}!']", "judged on persona.prompts, and calm has none"),
    ],
)
def test_what_has_no_prompts_is_refused_before_anything_is_loaded(
    composed: Callable[..., RunConfig], asked: str, says: str
) -> None:
    with pytest.raises(HomeostatError, match=says):
        SteeringWing.check_files(composed(*OVERRIDES, "persona.prompts=[]", asked))


def test_a_foundation_that_there_is_not_is_named(composed: Callable[..., RunConfig]) -> None:
    with pytest.raises(
        HomeostatError, match=r"persona\.foundations\.greed is no .* care, fairness"
    ):
        SteeringWing.check_files(composed(*OVERRIDES, "+persona.foundations.greed=1"))


def test_a_run_from_before_a_figure_goes_on_without_it(whole: Path) -> None:
    """Rows that an earlier version measured lack what was added since: missing, not an error."""
    items = [row for row in rows(whole / "evals" / "stages.jsonl") if row["stage"] == "base"]
    old = [{k: v for k, v in r.items() if k not in ("shown_nats", "shown_shift")} for r in items]
    found, moved = stage_figures(old), compare_arms(old, items, 10)
    assert found["shown_nats"] is None
    assert found["shown_shift"] is None
    assert moved["shown_nats"].diff is None
    assert moved["trait_nats"].diff == 0


def test_a_run_without_a_persona_is_refused(composed: Callable[..., RunConfig]) -> None:
    with pytest.raises(ValueError, match=r"trainer=steer_heal needs a trait.*persona=love"):
        composed("trainer=steer_heal")
