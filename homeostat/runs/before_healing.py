"""What is found out about the base before the first healing; the arms of a sweep share it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from homeostat.config.run import RunConfig
from homeostat.evals.shown import compare_lines, validate_shown
from homeostat.evals.stages import Stages
from homeostat.files import write_text
from homeostat.models.adapters import Policy
from homeostat.models.cache import file_sha256, identity, remembered
from homeostat.report.plain import interval, number
from homeostat.runs.context import Run
from homeostat.steering.trainer import SteeringTrainer
from homeostat.steering.vectors import PersonaVector, extract
from homeostat.types import Turn

# Keys of the random numbers behind replies of the prompted poles, to system lines, for examples.
POLES, LINES, EXAMPLES = 19, 23, 29
READINGS = {"shown": "shown_nats", "shift": "shown_shift"}  # in shown.json, and their figures
SHOWN, PROMPTING, GIVEN = "shown.json", "prompting.json", "examples.json"


def before_healing(config: RunConfig, policy: Policy, what: str, compute: Callable[[], Any]) -> Any:
    """What was measured before the first healing, from the cache where nothing has changed.

    The arms of a sweep over barriers share it: neither adapter nor barrier has acted yet.
    """
    if not config.signals.cache:
        return compute()
    later = ("lr", "max_steps", "gradient_checkpointing", "heal", "barrier", "good", "adopt")
    acting = {name: value for name, value in asdict(config.trainer).items() if name not in later}
    path = acting["vector"]["contexts_path"]
    contexts = None if path is None else file_sha256(Path(path).expanduser())
    recipe = [what, *identity(policy), config.seed, config.persona, acting, contexts]
    return remembered("stages", recipe, compute)


def base_vector(run: Run, policy: Policy, trainer: SteeringTrainer) -> PersonaVector:
    """The mean difference under the base, whatever the kind that is steered with."""
    config = replace(trainer.config.vector, kind="mean_diff")

    def compute() -> dict[str, Any]:
        with run.section("the persona's vector", "vector") as progress, policy.reference():
            vector = extract(
                policy, trainer.persona, trainer.read_from, config, trainer.seed, progress
            )
        return vector.state_dict() | {"vectors": {n: v.tolist() for n, v in vector.vectors.items()}}

    found = before_healing(run.config, policy, "vector", compute)
    by_block = {int(block): torch.tensor(row) for block, row in found["vectors"].items()}
    relative = {int(block): value for block, value in found["relative_norm"].items()}
    return PersonaVector(by_block, relative, found["kind"])


def best_line(run: Run, policy: Policy, stages: Stages) -> str | None:
    """The system line that makes most of the trait show; None where there is but one."""
    more = stages.config.lines
    if not more:
        return None

    def compute() -> list[dict[str, Any]]:
        sampling = replace(stages.sampling, key=(run.config.seed, LINES))
        lines = [stages.persona.prompt, *more]
        with run.section("compare system lines", "evaluate") as progress:
            return compare_lines(policy, stages.persona, lines, sampling, progress)

    found = before_healing(run.config, policy, "lines", compute)
    write_found(run.folder, PROMPTING, found)
    known = [row for row in found if row["shown_nats"] is not None]
    best = max(known, key=lambda row: row["shown_nats"], default=found[0])
    run.console.say(f"of {len(found)} system lines the best is: {best['line']}")
    return str(best["line"])


def best_examples(run: Run, policy: Policy, stages: Stages) -> tuple[Turn, ...]:
    """Questions and the prompted base's own replies that show the trait most, as turns."""

    def compute() -> list[dict[str, Any]]:
        drawn = replace(stages, sampling=replace(stages.sampling, key=(run.config.seed, EXAMPLES)))
        with run.section("examples of the persona", "evaluate") as progress, policy.reference():
            return drawn.best_replies(policy, progress)

    found = before_healing(run.config, policy, "best replies", compute)
    write_found(run.folder, GIVEN, found)
    if len(found) < stages.config.examples:
        run.console.say(
            f"{len(found)} coherent replies show the trait, of trainer.stages.examples="
            f"{stages.config.examples} that are asked for"
        )
    return tuple(
        turn
        for row in found
        for turn in (Turn("user", row["question"]), Turn("assistant", row["reply"]))
    )


def check_reading(run: Run, policy: Policy, stages: Stages) -> None:
    """Keep whether the trait in a model's own replies can be read at all, and say what is doubted.

    All held-out prompts are answered, however few measure a stage.
    """

    def compute() -> dict[str, Any]:
        sampling = replace(stages.sampling, key=(run.config.seed, POLES))
        prompts = stages.persona.held_out_prompts
        with run.section("measure: whether the trait shows", "evaluate") as progress:
            return validate_shown(
                policy, stages.persona, prompts, sampling, stages.vector, progress
            )

    found = before_healing(run.config, policy, "shown", compute)
    write_found(run.folder, SHOWN, found)
    for doubt in doubts_about_readings(found):
        run.console.say(doubt)


def write_found(folder: Path, name: str, found: Any) -> None:
    """Write what was found into a file among a run's evaluations."""
    (folder / "evals").mkdir(exist_ok=True)
    write_text(folder / "evals" / name, json.dumps(found, indent=1) + "\n")


def doubts_about_readings(found: Mapping[str, Any]) -> list[str]:
    """What speaks against the two readings of own replies, from evals/shown.json."""
    doubts = [_doubt(found, name) for name in READINGS if name in found]
    return [doubt for doubt in doubts if doubt is not None]


def _doubt(found: Mapping[str, Any], name: str) -> str | None:
    reading, figure = found[name], READINGS[name]
    said = f"AUROC {number(reading['auroc'])} {interval(reading['ci95'])}"
    if reading["ci95"] is None or reading["ci95"][0] <= 0.5:
        return (
            f"whether the trait shows in a reply cannot be read on this model by {figure}: replies "
            f"of either side are told apart with {said}"
        )
    controls = {"length": found["tokens"], "speaking of oneself": found["first_person"]}
    for other, control in controls.items():
        area = control["auroc"]
        if area is not None and max(area, 1 - area) >= reading["auroc"]:
            return (
                f"{other} alone tells replies of either side apart as well as the reading of the "
                f"trait does (AUROC {number(area)} beside {said}): {figure} may be no more"
            )
    return None
