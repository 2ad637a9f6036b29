"""Barriers beside each other on made-up runs: means and paired differences by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from homeostat.report.barrier_comparison import _crossed, arm_names, write_comparison
from homeostat.runs.after_sweep import CompareBarriers


def make_run(
    folder: Path,
    aggregate: str,
    seed: int,
    rounds: dict[int, tuple[float, float]],
    fired: float | None = 0.25,
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
    healed = [{"round": r, "stage": "healed", "heal/fired": fired} for r in rounds]
    steered = [{"round": r, "stage": "steered", "heal/fired": None} for r in rounds]
    lines = [json.dumps(one) + "\n" for one in [*healed, *steered]]
    (folder / "rounds.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    runs = [
        make_run(tmp_path / "0", "mean", 0, {1: (0.4, 0.5), 2: (0.8, 0.25)}),
        make_run(tmp_path / "1", "mean", 1, {1: (0.6, 0.5), 2: (1.0, 0.25)}),
        make_run(tmp_path / "2", "rmse", 0, {1: (0.2, 1.0), 2: (0.3, 0.75)}),
        make_run(tmp_path / "3", "rmse", 1, {1: (0.2, 1.0)}),
        make_run(tmp_path / "4", "nll", 0, {1: (1.0, 0.0)}, fired=None),
    ]
    return write_comparison(runs, tmp_path / "out")


def row(found: dict[str, Any], arm: str, round_: int) -> dict[str, Any]:
    return next(r for r in found["arms"] if (r["arm"], r["round"]) == (arm, round_))


def test_figures_are_means_over_seeds_against_their_own_base(found: dict[str, Any]) -> None:
    mean = row(found, "mean", 1)
    assert mean["trait_nats"]["mean"] == pytest.approx(0.5)
    assert mean["coherent"]["mean"] == pytest.approx(0.5)
    assert mean["log_perplexity"]["mean"] == pytest.approx(0.5)
    assert mean["trait_per_nat"]["mean"] == pytest.approx(1.0)
    # Items do not vary here, seeds do: 0.5 -+ t(1 degree) * 0.1.
    assert mean["trait_nats"]["ci95"] == pytest.approx([0.5 - 1.2706, 0.5 + 1.2706], abs=1e-3)
    assert mean["trait_per_nat"]["ci95"] == pytest.approx([1 - 2.5412, 1 + 2.5412], abs=1e-3)


def test_items_are_crossed_with_seeds(found: dict[str, Any]) -> None:
    """Half of four items, the same for both seeds: var 1/3 / 4, three degrees; seeds add none."""
    reach = 3.1824 * (1 / 12) ** 0.5
    items = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    crossed = _crossed({0: items, 1: items})
    assert crossed is not None
    assert crossed["ci95"] == pytest.approx([0.5 - reach, 0.5 + reach], abs=1e-3)
    assert row(found, "mean", 1)["coherent"]["ci95"] == [0, 1], "no share lies beyond"


def test_a_second_run_of_an_arm_and_seed_is_left_out(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "0", "mean", 0, {1: (0.4, 0.5)}),
        make_run(tmp_path / "1", "mean", 0, {1: (0.9, 1.0)}, fired=0.9),
    ]
    found = write_comparison(runs, tmp_path / "out")
    assert row(found, "mean", 1)["trait_nats"]["mean"] == pytest.approx(0.4)
    assert found["firing"][0]["rate"] == 0.25
    first, second = (run["status"] for run in found["runs"])
    assert first == "finished"
    assert second == "left out, a second run of its arm and seed (finished)"


def test_no_share_lies_beyond_all_or_none(found: dict[str, Any]) -> None:
    """Two seeds of 0.75 and 1.0 would reach far beyond 1."""
    final = next(row for row in found["final"] if row["arm"] == "rmse")
    low, high = final["coherent"]["ci95"]
    assert 0 <= low < final["coherent"]["mean"] < high == 1
    assert max(map(abs, final["coherent_against_mean"]["ci95"])) <= 1


def test_all_of_four_is_no_certainty(found: dict[str, Any]) -> None:
    """Wilson's interval of 4 of 4 items, whose seeds add no others."""
    assert row(found, "rmse", 1)["coherent"]["ci95"] == pytest.approx([0.5101, 1.0], abs=1e-3)
    prompted = row(found, "prompted", 0)["coherent_against_mean"]
    assert prompted is None


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


def test_after_its_last_round_a_run_counts_with_where_it_ended(found: dict[str, Any]) -> None:
    final = {row["arm"]: row for row in found["final"]}
    assert list(final) == ["nll", "mean", "rmse"]
    assert final["rmse"]["rounds"] == {"0": 2, "1": 1}
    assert final["rmse"]["coherent"]["mean"] == pytest.approx((0.75 + 1.0) / 2)
    assert final["mean"]["rounds"] == {"0": 2, "1": 2}
    assert final["mean"]["coherent"]["mean"] == pytest.approx(0.25)
    assert final["rmse"]["coherent_against_mean"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert "coherent_against_mean" not in final["mean"]


def test_barriers_are_compared_only_if_they_fired_alike(
    found: dict[str, Any], tmp_path: Path
) -> None:
    assert found["equal_firing"] is True
    assert found["firing"][0] == {
        "arm": "mean",
        "round": 1,
        "rate": 0.25,
        "by_seed": {"0": 0.25, "1": 0.25},
    }
    assert not [one for one in found["firing"] if one["arm"] == "nll"], "it has no barrier"
    folders = [tmp_path / str(number) for number in range(5)]
    often = make_run(tmp_path / "5", "rmse", 2, {1: (0.2, 1.0)}, fired=0.6)
    unequal = write_comparison([*folders, often], tmp_path / "unequal")
    # rmse: 0.367 in the first round and 0.25 in the second, 0.058 more than the mean's.
    assert unequal["firing_over_rounds"] == pytest.approx(
        {"mean": 0.25, "rmse": 0.308333}, abs=1e-5
    )
    assert unequal["equal_firing"] is False
    assert "No comparison of barriers" in (tmp_path / "unequal" / "comparison.md").read_text()
    alone = write_comparison([often], tmp_path / "alone")
    assert alone["equal_firing"] is None


def test_no_heal_and_prompting_are_arms(found: dict[str, Any]) -> None:
    assert row(found, "no heal", 1)["coherent"]["mean"] == pytest.approx(0.5)
    assert row(found, "prompted", 0)["trait_nats"]["mean"] == pytest.approx(0.2)


def test_table_and_figure_are_written(found: dict[str, Any], tmp_path: Path) -> None:
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| rmse | 1 | 2 | +0.200" in text
    less = text.partition("Less mean")[2]
    assert "| rmse | 1 | 2 | -0.300" in less
    assert "| mean |" not in less.partition("After the last round")[0]
    assert "| rmse | 1 | 0.25 | 0.25, 0.25 |" in less
    assert "| 3 | rmse | 1 | finished |" in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert plt.imread(tmp_path / "out" / "comparison.png")[..., :3].std() > 0.02


def test_without_a_barrier_the_arm_is_nll() -> None:
    barriers = [
        {"divergence": "none", "aggregate": "rmse"},
        {"divergence": "kl_fwd", "aggregate": "cvar"},
    ]
    assert arm_names(barriers) == ["nll", "cvar"]


def test_arms_of_one_aggregate_are_told_apart_by_what_differs() -> None:
    common = {"divergence": "kl_rev", "reference": "prev", "coef": 0.3, "control": "fixed"}
    barriers = [
        common | {"aggregate": aggregate, "tau": tau}
        for aggregate, tau in (("mean", 0.5), ("rmse", 0.5), ("rmse", 2.0), ("rmse", 0.5))
    ]
    assert arm_names(barriers) == ["mean", "rmse, tau 0.5", "rmse, tau 2.0", "rmse, tau 0.5"]
    kinds = [barriers[1], barriers[1] | {"divergence": "kl_fwd"}]
    assert arm_names(kinds) == ["rmse, divergence kl_rev", "rmse, divergence kl_fwd"]


def test_the_end_of_a_sweep_compares_what_it_has_measured(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
    CompareBarriers().on_multirun_end(config)
    assert not sweep.exists(), "nothing was measured"
    make_run(sweep / "0", "mean", 0, {1: (0.4, 0.5)})
    (sweep / "1").mkdir()  # a job that failed before it measured anything
    CompareBarriers().on_multirun_end(config)
    assert "| mean | 1 | 1 |" in (sweep / "barriers" / "comparison.md").read_text()
