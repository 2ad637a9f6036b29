"""Barriers beside each other on made-up runs: means and paired differences by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from homeostat.report.barrier_comparison import arm_of, write_comparison
from homeostat.runs.after_sweep import CompareBarriers


def make_run(
    folder: Path, aggregate: str, seed: int, rounds: dict[int, tuple[float, float]]
) -> Path:
    """A run whose healed rounds have these (trait, coherent share of four) on four items each."""
    folder.mkdir(parents=True)
    divergence = "none" if aggregate == "nll" else "kl_rev"
    barrier = {"divergence": divergence, "aggregate": aggregate}
    config = {"seed": seed, "trainer": {"barrier": barrier}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    rows: list[dict[str, Any]] = []

    def add(round_: int, stage: str, trait: float, coherent: float, kl: float) -> None:
        place = {"round": round_, "stage": stage}
        for item in range(4):
            rows.append({**place, "kind": "trait", "item": f"t{item}", "trait_nats": trait + item})
            reply = {"coherent": float(item < 4 * coherent), "log_perplexity": 2.0 + trait}
            rows.append(
                {**place, "kind": "reply", "item": f"r{item}", "kl_nats_per_token": kl} | reply
            )

    add(0, "base", 0.1 * seed, 1.0, 0.0)
    add(0, "prompted", 0.1 * seed + 0.2, 1.0, 0.1)
    for round_, (trait, coherent) in rounds.items():
        add(round_, "steered", 0.1 * seed + 2 * trait, 0.5, 2.0)
        add(round_, "healed", 0.1 * seed + trait, coherent, 0.5)
    (folder / "evals").mkdir()
    (folder / "evals" / "stages.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    runs = [
        make_run(tmp_path / "0", "mean", 0, {1: (0.4, 0.5), 2: (0.8, 0.25)}),
        make_run(tmp_path / "1", "mean", 1, {1: (0.6, 0.5), 2: (1.0, 0.25)}),
        make_run(tmp_path / "2", "rmse", 0, {1: (0.2, 1.0), 2: (0.3, 0.75)}),
        make_run(tmp_path / "3", "rmse", 1, {1: (0.2, 1.0)}),
        make_run(tmp_path / "4", "nll", 0, {1: (1.0, 0.0)}),
    ]
    return write_comparison(runs, tmp_path / "out", samples=200)


def row(found: dict[str, Any], arm: str, round_: int) -> dict[str, Any]:
    return next(r for r in found["arms"] if (r["arm"], r["round"]) == (arm, round_))


def test_figures_are_means_over_seeds_against_their_own_base(found: dict[str, Any]) -> None:
    mean = row(found, "mean", 1)
    assert mean["trait_nats"]["mean"] == pytest.approx(0.5)
    assert mean["coherent"]["mean"] == pytest.approx(0.5)
    assert mean["log_perplexity"]["mean"] == pytest.approx(0.5)
    assert mean["trait_per_nat"]["mean"] == pytest.approx(1.0)
    low, high = mean["trait_nats"]["ci95"]
    assert (low, high) == pytest.approx((0.4, 0.6)), "items do not vary here, seeds do"


def test_differences_are_paired_by_seed(found: dict[str, Any]) -> None:
    rmse = row(found, "rmse", 1)
    assert rmse["coherent_against_mean"]["mean"] == pytest.approx(0.5)
    assert rmse["trait_nats_against_mean"]["mean"] == pytest.approx(-0.3)
    assert rmse["trait_nats_against_mean"]["n_seeds"] == 2


def test_a_run_that_stopped_early_is_missing_later_and_listed(found: dict[str, Any]) -> None:
    late = row(found, "rmse", 2)
    assert late["seeds"] == [0]
    assert late["coherent_against_mean"]["n_seeds"] == 1
    assert len(found["runs"]) == 5
    assert not [r for r in found["arms"] if (r["arm"], r["round"]) == ("nll", 2)]


def test_no_heal_and_prompting_are_arms(found: dict[str, Any]) -> None:
    assert row(found, "no heal", 1)["coherent"]["mean"] == pytest.approx(0.5)
    assert row(found, "prompted", 0)["trait_nats"]["mean"] == pytest.approx(0.2)


def test_table_and_figure_are_written(found: dict[str, Any], tmp_path: Path) -> None:
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| rmse | 1 | 2 | +0.200" in text
    less = text.partition("Less mean")[2]
    assert "| rmse | 1 | 2 | -0.300" in less
    assert "| mean |" not in less.partition("| run |")[0]
    assert "| 3 | rmse | 1 | finished |" in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert plt.imread(tmp_path / "out" / "comparison.png")[..., :3].std() > 0.02


def test_without_a_barrier_the_arm_is_nll() -> None:
    assert arm_of({"divergence": "none", "aggregate": "rmse"}) == "nll"
    assert arm_of({"divergence": "kl_fwd", "aggregate": "cvar"}) == "cvar"


def test_the_end_of_a_sweep_compares_what_it_has_measured(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
    CompareBarriers().on_multirun_end(config)
    assert not sweep.exists(), "nothing was measured"
    make_run(sweep / "0", "mean", 0, {1: (0.4, 0.5)})
    (sweep / "1").mkdir()  # a job that failed before it measured anything
    CompareBarriers().on_multirun_end(config)
    assert "| mean | 1 | 1 |" in (sweep / "barriers" / "comparison.md").read_text()
