"""Configs of run folders that an earlier layout of this package wrote, in today's form.

Runs are compared, known again and resumed in that form, so that a run does not become another one
when a class moves or an option is added. No torch import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from homeostat.config.register import PLACED, schemas
from homeostat.config.run import RunConfig
from homeostat.config.tracker import TrackerConfig, WandbConfig

Values = Mapping[str, Any]

# What a ``_target_`` was once called, and is called now.
MOVED: dict[str, str] = {
    "": "homeostat.trainers.none.NoTrainer",
    "homeostat.trainers.steer_heal.SteerHeal": "homeostat.steering.loop.SteerHeal",
}
# What every run knew when evaluations had no options of their own.
EVALUATIONS = (
    "answer",
    "are_you_sure",
    "feedback",
    "mimicry",
    "opinion",
    "perez",
    "pressure_facts",
    "pressure_stances",
    "foundations",
    "coherence",
    "capability",
    "plain_text",
)
# Evaluations that every run has come to know since.
LATER_EVALUATIONS = ("false_beliefs",)

# What a value was once called, by its key, and is called now.
RENAMED: dict[str, dict[Any, Any]] = {"reward.affect": {"true": "felt"}}

# Options that came later and have no default in their schema, by their key: the value that a run
# without them had, read from its own config.
ADDED: dict[str, Callable[[Values], Any]] = {
    "objective": lambda _: None,
    "allow_targets": lambda _: [],
    "work.updates": lambda run: run["trainer"]["max_steps"],
    "work.episodes": lambda run: run["trainer"]["batch_size"],
    "work.rounds": lambda run: run["trainer"]["max_steps"],
    "work.completions": lambda run: run["trainer"]["batch_size"],
    "trainer.clip_range_high": lambda _: None,
    "trainer.critic_warmup": lambda _: 0,
    "trainer.credit": lambda run: "episode" if "group_size" in run["trainer"] else "token",
    "trainer.gamma": lambda _: 1.0,
    "trainer.entropy_target": lambda _: None,
    "trainer.kl_cov_share": lambda _: 0.0,
    "trainer.mask_truncated": lambda _: False,
    "trainer.top_p": lambda _: 1.0,
    "trainer.top_k": lambda _: None,
    "trainer.teacher": lambda _: "steered",
    "trainer.asked": lambda _: "contexts",
    "trainer.target": lambda _: None,
    "trainer.most_batches": lambda _: 4,
    "trainer.good": lambda _: 0.99,
    "trainer.adopt": lambda _: "all",
    "trainer.dose.shares": lambda _: [1.0],
    "trainer.dose.positions": lambda _: "reply",
    "trainer.heal.schedule": lambda _: "constant",
    "trainer.heal.warmup": lambda _: 0.0,
    "trainer.filter.min_diversity": lambda _: None,
    "trainer.stages.gates.min_diversity": lambda _: None,
    "trainer.stages.prompts": lambda _: 0,
    "trainer.stages.lines": lambda _: [],
    "trainer.stages.reversed": lambda _: False,
    "trainer.stages.contrary": lambda _: False,
    "trainer.stages.ablated": lambda _: False,
    "trainer.stages.examples": lambda _: 0,
    "trainer.stages.turns": lambda _: 1,
    "trainer.barrier.rate_lr": lambda _: 0.3,
}


def upgraded(config: Values) -> dict[str, Any]:
    """A run's config as it would be written today.

    A config that today's schemas refuse comes back with its keys as they are: composing it names
    what is wrong.

    Args:
        config: As it lies in the run's folder; without interpolations resolved.
    """
    moved: dict[str, Any] = _moved(config)
    if isinstance(moved.get("eval"), Mapping):
        moved["eval"] = _known_evaluations(moved["eval"])
    if isinstance(moved.get("wandb"), Mapping) and "tracker" not in moved:
        moved["tracker"] = _tracker(moved.pop("wandb"))
    for key, names in RENAMED.items():
        parent, _, name = key.rpartition(".")
        node = placed(moved, parent)
        if isinstance(node, dict) and node.get(name) in names:
            node[name] = names[node[name]]
    try:
        typed: Any = OmegaConf.merge(_schema(moved), moved)
    except OmegaConfBaseException:
        return moved
    for key, value in ADDED.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(typed, parent) if parent else typed
        if OmegaConf.is_dict(node) and OmegaConf.is_missing(node, name):
            node[name] = value(moved)
    present: dict[str, Any] = _without_missing(OmegaConf.to_container(typed))
    return present


def _without_missing(node: Any) -> Any:
    """Plain values without the keys that have none."""
    if isinstance(node, Mapping):
        return {str(k): _without_missing(v) for k, v in node.items() if v != MISSING}
    return [_without_missing(item) for item in node] if isinstance(node, list) else node


def _tracker(wandb: Values) -> dict[str, Any]:
    """The tracker of a run that knew no other than wandb."""
    if wandb.get("mode") == "disabled":
        return {"_target_": TrackerConfig._target_, "name": "none"}
    kept = {"mode": wandb.get("mode"), "project": wandb.get("project")}
    since: dict[str, Any] = {"group": None, "entity": None, "tags": [], "notes": None}
    shown = dict.fromkeys(("episodes", "figures", "adapter"), False)
    named = {"_target_": WandbConfig._target_, "name": "wandb", "run_name": wandb.get("name")}
    return named | kept | since | shown


def _known_evaluations(node: Values) -> dict[str, Any]:
    """The part of the evaluations, with those that are known; a choice of one's own stays so."""
    known = {"evaluations": _records(EVALUATIONS), **node}
    if not set(EVALUATIONS) <= set(known["evaluations"] or ()):
        return known
    later = _records(LATER_EVALUATIONS)
    known["evaluations"] = known["evaluations"] | later | known["evaluations"]
    for key in ("items", "files"):
        own = known.get(key) or {}
        known[key] = own | dict.fromkeys(later) | own  # what is there keeps its place and value
    return known


def _records(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"_target_": f"homeostat.evals.{name}.EVALUATION"} for name in names}


def varies(group: str, node: Any) -> bool:
    """Whether ``group`` has options of different schemas; ``node`` is its part of a config."""
    known = any(path.startswith(f"{group}/") for path in schemas())
    return known and isinstance(node, Mapping) and "_target_" in node


def schema_path(group: str, node: Values) -> str:
    """Where Hydra's ConfigStore has the schema of an option of ``group``.

    Args:
        group: Of options that differ in their schemas, such as ``trainer``.
        node: Its values in a run's config.
    """
    named = [(f"schema/{path}", kind) for path, kind in schemas().items()]
    options = {path: kind for path, kind in named if path.startswith(f"schema/{group}/")}
    for path, kind in options.items():
        if getattr(kind, "_target_", None) == node["_target_"]:
            return path
    # A user's own class in the place of ours: its schema is the narrowest that has all its keys.
    sizes = {path: {one.name for one in fields(schema)} for path, schema in options.items()}
    fitting = [path for path, names in sizes.items() if names >= set(node)] or list(options)
    return min(fitting, key=lambda path: len(sizes[path]))


def schema_of(group: str, node: Values) -> Any:
    """The schema of an option of ``group``; see `schema_path`."""
    return schemas()[schema_path(group, node).removeprefix("schema/")]


def _moved(node: Any) -> Any:
    """The same values with every ``_target_`` under its present name."""
    if isinstance(node, Mapping):
        moved = {key: _moved(item) for key, item in node.items()}
        if "_target_" in moved:
            moved["_target_"] = MOVED.get(str(moved["_target_"]), moved["_target_"])
        return moved
    return [_moved(item) for item in node] if isinstance(node, list) else node


def _schema(config: Values) -> Any:
    """The schema of a whole run with the options that ``config`` has."""
    typed = OmegaConf.structured(RunConfig)
    for place, group in ({group: group for group in config} | PLACED).items():
        node = placed(config, place)
        if varies(group, node):
            above, _, key = place.rpartition(".")
            parent = OmegaConf.select(typed, above) if above else typed
            parent[key] = OmegaConf.structured(schema_of(group, node))
    return typed


def placed(config: Values, place: str) -> Any:
    """What a config has at a dotted place; None for nothing."""
    node: Any = config
    for key in place.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
