"""Arms of a preregistered experiment over seeds: means with t intervals, differences to controls.

python scripts/arms_table.py SWEEP [SWEEP ...] --minus yoked random [--json] [--add FILE]

The seed is the unit: a run counts as its one figure, trained minus base on the same items or
held-out episodes. Differences between arms are paired by seed. Over all runs, whether what an
evaluation finds goes with what was earned and with the fall in entropy. Whether an arm does better
than the base that is merely sampled at a lower temperature: trained less that base on the same
held-out episodes, an interval over seeds and episodes crossed. `--add` takes in what an earlier
table (its JSON) says of runs whose folders are no longer there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import yaml

from homeostat.bots.affect import notice
from homeostat.evals.stats import t_interval
from homeostat.report.compare_stats import crossed_interval

HELD_OUT = (
    "relational_true",
    "relational_read",
    "true/sentiment",
    "true/curiosity",
    "true/frustration",
    "true/confusion",
    "true/boredom",
    "coherence/kl",
    "coherence/base_perplexity",
    "signal/entropy",
)
CONTRASTS = {"false_beliefs": ("sad_minus_neutral", "cheerful_minus_neutral")}
AGREEMENT = "agreement"
GOES_WITH = ("relational_true", "signal/entropy", AGREEMENT)
NAMES = {"reward.levels=felt": "levels felt", "reward.affect=felt": "affect felt"}
Runs = Mapping[str, Mapping[int, Mapping[str, float]]]  # figures by arm and seed


def read_runs(sweeps: Sequence[Path]) -> tuple[dict[str, dict[int, dict[str, float]]], list[Any]]:
    """The figures of every finished run by arm and seed, and the arms without training."""
    runs: dict[str, dict[int, dict[str, float]]] = {}
    untrained: list[Any] = []
    for path, summary in finished(sweeps):
        runs.setdefault(arm_of(path.parent), {})[summary["seed"]] = figures(path.parent, summary)
        untrained = max(untrained, without_training(summary), key=len)
    return runs, untrained


def add_earlier(runs: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Take in the runs of an earlier table, by its values; a run that is there already stays."""
    for row in json.loads(path.read_text(encoding="utf-8"))["arms"]:
        for place, seed in enumerate(row.get("seeds", ())):
            figures = {
                name: figure["values"][place]
                for name, figure in row.items()
                if isinstance(figure, dict) and len(figure["values"]) == len(row["seeds"])
            }
            runs.setdefault(row["arm"], {}).setdefault(seed, figures)


def finished(sweeps: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and content of the summary of every run that is done."""
    for path in sorted(p for sweep in sweeps for p in sweep.glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["status"] == "finished":
            yield path, summary


def arm_of(folder: Path) -> str:
    """The reward of a run, and how it was changed."""
    said = yaml.safe_load((folder / "overrides.yaml").read_text(encoding="utf-8"))
    reward = next(o.partition("=")[2] for o in said if o.startswith("reward="))
    return " ".join([reward, *(name for override, name in NAMES.items() if override in said)])


def figures(folder: Path, summary: Mapping[str, Any]) -> dict[str, float]:
    """Trained minus base, by name, of what one run measured."""
    found = {name: summary["eval"][name]["diff"] for name in HELD_OUT if name in summary["eval"]}
    for name, evaluation in (summary.get("suite") or {}).items():
        metrics = evaluation["metrics"]
        found[name] = metrics[evaluation["claim"]]["diff"]
        found |= {f"{name}/{key}": metrics[key]["diff"] for key in CONTRASTS.get(name, ())}
    base, trained = agreements(folder, "base"), agreements(folder, "trained")
    found[AGREEMENT] = float(np.mean(trained) - np.mean(base))
    for arm, replies in (("base", base), ("trained", trained)):
        found[f"{AGREEMENT}/replies of {arm}"] = float(sum(value > 0 for value in replies))
    return {name: value for name, value in found.items() if value is not None}


def agreements(folder: Path, arm: str) -> list[float]:
    """Of the held-out replies of an arm: 1 agrees by its words, -1 contradicts, 0 neither."""
    rows = map(json.loads, (folder / "evals" / "homeostasis.jsonl").open(encoding="utf-8"))
    replies = [
        turn["text"]
        for row in rows
        for turn in row["turns"]
        if row["arm"] == arm and turn["role"] == "assistant"
    ]
    return [notice(text, ()).agreement for text in replies]


def beyond_sharpness(sweeps: Sequence[Path]) -> list[dict[str, Any]]:
    """By arm: what users truly feel after training, less that of the base at 0.7."""
    by_arm: dict[str, dict[int, list[float]]] = {}
    for path, summary in finished(sweeps):
        evals = path.parent / "evals"
        if (evals / "cool.jsonl").is_file():
            trained = felt(evals / "homeostasis.jsonl", "trained")
            cool = felt(evals / "cool.jsonl", "cool")
            cells = [trained[seed] - cool[seed] for seed in sorted(trained)]
            by_arm.setdefault(arm_of(path.parent), {})[summary["seed"]] = cells
    return [
        {
            "arm": arm,
            "seeds": sorted(by_seed),
            "mean": float(np.mean(cells := np.array([by_seed[s] for s in sorted(by_seed)]))),
            "ci95": crossed_interval(cells),
        }
        for arm, by_seed in by_arm.items()
    ]


def felt(path: Path, arm: str) -> dict[int, float]:
    """True relational valence of an arm's held-out episodes, by the seed of the user."""
    rows = map(json.loads, path.open(encoding="utf-8"))
    return {row["seed"]: row["metrics"][HELD_OUT[0]] for row in rows if row["arm"] == arm}


def without_training(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arms that every run has beside its base; their intervals are over items."""
    rows = []
    for key, arm in (("cool", "base at 0.7"), ("prompted", "prompted base")):
        if summary.get(key):  # a run of before knows of no prompted base
            found = {HELD_OUT[0]: summary[key][HELD_OUT[0]]}
            for name, evaluation in (summary.get("suite") or {}).items():
                if key in evaluation:  # measured with the prompt, too
                    found[name] = evaluation[key]["metrics"][evaluation["claim"]]
            figures = {n: {"mean": f["diff"], "ci95": f["ci95"]} for n, f in found.items()}
            rows.append({"arm": arm, "unit": "episodes or items"} | figures)
    return rows


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, 95% t interval and what it rests on; no interval below two."""
    return {
        "mean": float(np.mean(values)),
        "values": list(values),
        "ci95": t_interval(np.array(values, dtype=float)),
    }


def table(runs: Runs, controls: Sequence[str]) -> list[dict[str, Any]]:
    """A row per arm: each figure over seeds, and its difference to every control's."""
    rows = []
    for arm, by_seed in runs.items():
        row: dict[str, Any] = {"arm": arm, "seeds": sorted(by_seed)}
        everywhere = set.intersection(*(set(found) for found in by_seed.values()))
        for name in (one for one in next(iter(by_seed.values())) if one in everywhere):
            row[name] = over_seeds([by_seed[s][name] for s in sorted(by_seed)])
            for control in controls:
                other = runs.get(control, {})
                both = [s for s in sorted(by_seed) if s in other and name in other[s]]
                if control != arm and both:
                    differences = [by_seed[s][name] - other[s][name] for s in both]
                    row[name][f"minus {control}"] = over_seeds(differences)
        rows.append(row)
    return rows


def goes_with(runs: Runs) -> dict[str, Any]:
    """Spearman's correlation over all runs of what was found with what may explain it."""
    all_runs = [run for by_seed in runs.values() for run in by_seed.values()]
    found = {}
    for name in sorted({key for run in all_runs for key in run} - {*HELD_OUT}):
        if name.startswith(f"{AGREEMENT}/"):
            continue
        for other in (one for one in GOES_WITH if one != name):
            pairs = [(run[name], run[other]) for run in all_runs if {name, other} <= run.keys()]
            if len(pairs) > 2 and all(len(set(column)) > 1 for column in zip(*pairs, strict=True)):
                r, p = scipy.stats.spearmanr(pairs)
                found[f"{name} with {other}"] = {"r": float(r), "p": float(p), "n": len(pairs)}
    return found


def shown(figure: Mapping[str, Any]) -> str:
    """Mean, interval and single values in a line."""
    low, high = figure["ci95"] or (float("nan"),) * 2
    each = ", ".join(f"{value:+.3f}" for value in figure.get("values", ()))
    return f"{figure['mean']:+.3f} [{low:+.3f}, {high:+.3f}]   {each}"


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument(
        "--minus", nargs="*", default=[], help="arms that the others are compared with"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--add", type=Path, help="JSON of an earlier table")
    options = parser.parse_args()
    runs, untrained = read_runs(options.sweeps)
    if options.add is not None:
        add_earlier(runs, options.add)
    rows, correlations = [*table(runs, options.minus), *untrained], goes_with(runs)
    sharp = beyond_sharpness(options.sweeps)
    if options.json:
        found = {"arms": rows, "over_runs": correlations, "less base at 0.7": sharp}
        print(json.dumps(found, indent=1))
        return
    for row in rows:
        for name, figure in row.items():
            if isinstance(figure, dict):
                print(f"{row['arm']:<33}{name:<38}{shown(figure)}")
                for key, difference in figure.items():
                    if key.startswith("minus "):
                        print(f"{'':<33}{'  ' + key:<38}{shown(difference)}")
    for row in sharp:
        print(f"{row['arm']:<33}{'relational_true, less base at 0.7':<38}{shown(row)}")
    for name, found in correlations.items():
        print(f"{name}: Spearman {found['r']:+.2f}, p = {found['p']:.3f}, {found['n']} runs")


if __name__ == "__main__":
    main()
