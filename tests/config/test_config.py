"""Every option composes, every wrong value is refused, and nothing heavy is imported for either."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from homeostat.cli import CONF, explain
from homeostat.config.bots import REPLY_FEATURES, MixedBotConfig, OwnBotConfig
from homeostat.config.filters import standard_filter
from homeostat.config.register import as_choices, compose_run, config_part, options, schemas
from homeostat.config.resume import _amounts_of_work
from homeostat.config.reward import SIDES, RewardConfig
from homeostat.config.run import DEVICES, DTYPES, RunConfig
from homeostat.config.signals import AFFECTS, INTRINSIC_SIGNALS, POOLINGS
from homeostat.config.steering import SteerHealConfig
from homeostat.config.trainers import NoTrainerConfig, PPOConfig
from homeostat.errors import HomeostatError

GROUPS = options()
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]
RECIPES = [c for c in CHOICES if c[0] in ("scale", "experiment")]  # they change other groups
OPTIONS = [c for c in CHOICES if c not in RECIPES]
REWARD_OF_FAMILY = {"intrinsic": "intrinsic_only", "affect": "relational_only"}


@cache
def draft(*overrides: str) -> DictConfig:
    """The composed config before it is converted and checked; not to be changed."""
    return compose_run(*overrides)


def chosen(group: str, name: str) -> DictConfig:
    """A draft with this option; options of independent groups share one, as composing is slow."""
    return draft(*overrides_for(group, name))


def overrides_for(group: str, name: str) -> tuple[str, ...]:
    if group == "signals":
        reward = f"reward={REWARD_OF_FAMILY[name]}"
        return ("~scale", "bot=curious", f"signals=[{name}]", reward)
    if group == "evaluation":  # all are known; one more is added
        return ("~scale", f"+evaluation={name}")
    row = GROUPS[group].index(name)
    names = {
        other: listed[row % len(listed)]
        for other, listed in GROUPS.items()
        if other not in ("signals", "scale", "experiment", "evaluation")
    }
    path = ["model.path=x"] if names["model"] == "local" else []
    path += ["bot.path=x"] if names.get("bot") == "file" else []
    return ("~scale", *(f"{key}={value}" for key, value in names.items()), *path)


def converted(config: DictConfig) -> RunConfig:
    found = OmegaConf.to_object(config)
    assert isinstance(found, RunConfig)
    return found


def changed(config: DictConfig, **values: Any) -> DictConfig:
    """A copy with some values changed, as an override would; keys with __ for dots."""
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    for key, value in values.items():
        OmegaConf.update(copy, key.replace("__", "."), value, merge=False, force_add=True)
    return copy


def assert_holds(found: Any, written: Any, where: str) -> None:
    """What a YAML file says is what the config holds."""
    if isinstance(written, Mapping):
        for key, value in written.items():
            assert_holds(found[key], value, f"{where}.{key}")
    elif not str(written).startswith(("???", "${")):
        assert found == written, where


def written(path: Path) -> tuple[str, dict[str, Any]]:
    """The package of a YAML file and the values that it gives."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"^# @package (\S+)", text)
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    values.pop("defaults", None)
    return package.group(1) if package else path.parent.name, values


# --- every option -------------------------------------------------------------------------------


def test_every_group_has_options() -> None:
    assert {"model", "signals", "reward", "trainer", "bot", "eval", "scale"} <= set(GROUPS)
    # Evaluations are chosen where the suite is composed, filters by nobody.
    parts = {CONF, CONF / "filters", CONF / "evaluation"}
    folders = {path.parent for path in CONF.rglob("*.yaml")} - parts
    assert {f.name for f in folders if f.parent == CONF} == set(GROUPS)


def test_what_options_are_made_of_is_no_choice() -> None:
    assert [name for names in GROUPS.values() for name in names if "/" in name] == []
    assert set(GROUPS["trainer"]) == {
        *("ppo", "grpo", "rloo", "dpo", "none"),
        *("steer_heal", "steer_online"),
    }
    assert "filters" not in GROUPS
    with pytest.raises(HydraException):
        draft("trainer=policy_gradient")


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=map("=".join, OPTIONS))
def test_every_option_composes_and_converts(group: str, name: str) -> None:
    config = converted(chosen(group, name))
    package, values = written(CONF / group / f"{name}.yaml")
    found = asdict(config)
    for part in package.split("."):
        found = found[part]
    assert_holds(found, values, package)
    if group not in ("reward", "evaluation"):  # the schema is the one that the code behind it takes
        assert_fits(getattr(config, group))


def assert_fits(part: Any) -> None:
    """The first argument of what ``_target_`` names is this config's class."""
    target = getattr(part, "_target_", None)
    if not target:
        return
    first = next(iter(inspect.signature(get_object(target)).parameters.values()))
    expected = getattr(first.annotation, "__name__", str(first.annotation))
    assert expected in [kind.__name__ for kind in type(part).__mro__]


def with_trainer(group: str, name: str, trainer: str) -> RunConfig:
    """The config of a run with this scale or experiment, and a value from the command line."""
    bot = ["bot=curious"] if group == "scale" else []  # half the time; an experiment may choose
    persona = ["persona=calm"] if trainer.startswith("steer_") else []
    return converted(draft(f"trainer={trainer}", f"{group}={name}", *bot, *persona, "lora.rank=77"))


STEERING = ("author", "love", "mean_vs_rmse", "told")  # experiments of trainer=steer_heal


@pytest.mark.parametrize("trainer", GROUPS["trainer"])
@pytest.mark.parametrize(("group", "name"), RECIPES, ids=map("=".join, RECIPES))
def test_every_scale_and_experiment_goes_with_every_trainer(
    group: str, name: str, trainer: str
) -> None:
    if name in STEERING and trainer != "steer_heal":
        pytest.skip("the experiment is about one trainer")
    config = with_trainer(group, name, trainer)
    assert config.trainer.name == trainer
    assert config.lora.rank == 77  # the command line has the last word
    if group == "scale":
        package, values = written(CONF / group / f"{name}.yaml")
        assert package == "_global_"
        assert_holds(asdict(config), values, name)


def test_the_default_run_is_the_one_that_is_promised() -> None:
    config = converted(draft())
    names = (config.model.name, config.trainer.name, config.bot.name, config.eval.name)
    assert names == ("smollm2_135m", "ppo", "mixed", "homeostasis")
    assert config.signals.names == (*INTRINSIC_SIGNALS, *AFFECTS)
    assert config.seed == 0


def test_without_a_trainer_a_run_validates_the_signals() -> None:
    config = converted(draft("trainer=none"))
    assert isinstance(config.trainer, NoTrainerConfig)
    assert (config.trainer.name, config.trainer.learns) == ("none", False)
    assert config.signals.names == (*INTRINSIC_SIGNALS, *AFFECTS)


# --- a value stands once ------------------------------------------------------------------------


@cache
def values_alone(*overrides: str) -> DictConfig:
    """What the YAML files say, composed without the schemas."""
    store = ConfigStore.instance()
    kept, store.repo = store.repo, {k: v for k, v in store.repo.items() if k != "schema"}
    try:
        for path in schemas():
            group, _, name = f"schema/{path}".rpartition("/")
            store.store(group=group, name=name, node={})
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    finally:
        store.repo = kept


def has_default(known: Field[Any]) -> bool:
    """Whether the schema gives a value; an empty mapping or list is a place for values."""
    made = known.default if known.default_factory is MISSING else known.default_factory()
    return made is not MISSING and made not in ("???", {}, [])


def stand_twice(config: Any, values: Any, path: str = "") -> Iterator[str]:
    """Keys of ``values`` for which the schema of ``config`` has a default."""
    known = {f.name: f for f in fields(config)} if is_dataclass(config) else {}
    for key, value in values.items():
        own = getattr(config, key) if known else config[key]
        if isinstance(own, dict) or is_dataclass(own):
            yield from stand_twice(own, value, f"{path}{key}.")
        elif key in known and has_default(known[key]):
            yield f"{path}{key}"


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("=".join, CHOICES))
def test_what_a_yaml_sets_has_no_default_in_the_schema(group: str, name: str) -> None:
    overrides = overrides_for(group, name)
    if (group, name) in RECIPES:
        overrides = (f"{group}={name}", "bot=curious")
    found = stand_twice(converted(draft(*overrides)), values_alone(*overrides))
    # A reward states what silence leaves open, so its schema says what silence means.
    optional = ("eval.", "reward.")
    assert [key for key in found if not key.startswith(optional)] == []


def test_a_default_beside_a_value_is_noticed() -> None:
    @dataclass
    class Twice:
        once: float
        twice: float = 0.5

    assert list(stand_twice(Twice(1.0), {"once": 1.0, "twice": 0.5})) == ["twice"]


def test_a_part_is_what_a_run_gets_with_what_is_changed() -> None:
    trainer = converted(draft("~scale", "bot=curious", "trainer=rloo", "trainer.lr=0.5")).trainer
    assert config_part("trainer=rloo", lr=0.5) == trainer
    assert config_part("trainer=steer_heal", "barrier", coef=0.0).aggregate == "rmse"
    with pytest.raises(ValueError, match=r"trainer\.lr=0.0 must be above 0"):
        config_part("trainer=rloo", lr=0.0)


def test_the_gates_of_coherence_stay_when_the_filter_is_loosened() -> None:
    loose = "trainer.filter.max_perplexity=6"
    trainer = converted(draft("trainer=steer_heal", "persona=calm", "bot=curious", loose)).trainer
    assert isinstance(trainer, SteerHealConfig)
    assert (trainer.filter.max_perplexity, trainer.stages.gates.max_perplexity) == (6, 3)
    assert trainer.stages.gates == standard_filter()


# --- how much work a scale means ----------------------------------------------------------------

WORK = {"cpu": (8, 12, 3, 12), "gpu12": (100, 64, 3, 32), "smoke": (2, 4, 2, 4)}


@pytest.mark.parametrize("trainer", GROUPS["trainer"])
@pytest.mark.parametrize("scale", WORK)
def test_every_wing_takes_its_own_work_from_the_scale(scale: str, trainer: str) -> None:
    config = with_trainer("scale", scale, trainer)
    steering = config.trainer.wing == "steering"
    updates, episodes, rounds, completions = WORK[scale]
    expected = {
        "steer_heal": (rounds, completions),
        "steer_online": (updates, completions),
    }.get(trainer, (updates, episodes))
    assert steering == trainer.startswith("steer_") == config.trainer.needs_persona
    assert (config.trainer.max_steps, config.trainer.batch_size) == expected


@pytest.mark.parametrize("trainer", GROUPS["trainer"])
def test_a_resumed_run_counts_in_its_trainer_s_own_amounts(trainer: str) -> None:
    """What is typed when a run is resumed means what it meant when the run began."""
    if trainer == "none":
        pytest.skip("it has no steps")
    config = with_trainer("scale", "smoke", trainer)
    typed = _amounts_of_work(asdict(config.trainer))
    written_down = draft(f"trainer={trainer}", "~scale", "persona=calm", "bot=curious")
    raw = OmegaConf.to_container(written_down.trainer, resolve=False)
    assert isinstance(raw, dict)
    assert typed == {name: raw[name] for name in ("max_steps", "batch_size")}


@pytest.mark.parametrize("own", [("trainer=grpo",), ("trainer=steer_heal", "persona=calm")])
def test_the_command_line_decides_over_the_scale(own: tuple[str, ...]) -> None:
    typed = ("trainer.max_steps=5", "trainer.batch_size=8")
    trainer = converted(draft(*own, "scale=gpu12", "bot=curious", *typed)).trainer
    assert (trainer.max_steps, trainer.batch_size) == (5, 8)


def test_an_experiment_decides_over_the_scale() -> None:
    trainer = converted(draft("experiment=learn_cpu", "scale=gpu12", "bot=curious")).trainer
    assert (trainer.max_steps, trainer.batch_size) == (6, 16)


# --- what a sweep compares ----------------------------------------------------------------------


def reward(name: str) -> dict[str, Any]:
    return asdict(converted(chosen("reward", name)).reward)


TERMS = {
    "external_praise": {"praise"},
    "random": {"noise"},
    "self_certainty": {"self_certainty"},
    "entropy_minimisation": {"entropy_minimisation"},
}
SOURCES = {"yoked": "yoked", "true_affect": "felt"}


@pytest.mark.parametrize("name", sorted(set(GROUPS["reward"]) - {"base_levels"}))
def test_reward_options_differ_only_in_weights_and_terms(name: str) -> None:
    found, full = reward(name), reward("full")
    assert set(found.pop("terms")) == TERMS.get(name, set())
    assert found.pop("affect") == SOURCES.get(name, "read")
    for key in ("terms", "affect"):
        full.pop(key, None)
    for config in (found, full):
        for point in config["set_points"].values():
            point.pop("weight")
    assert found == full


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        ("full", INTRINSIC_SIGNALS + AFFECTS),
        ("intrinsic_only", INTRINSIC_SIGNALS),
        ("relational_only", AFFECTS),
        ("external_praise", ()),
        *(
            (f"without_{name}", tuple(n for n in INTRINSIC_SIGNALS + AFFECTS if n != name))
            for name in INTRINSIC_SIGNALS + AFFECTS
            if name not in ("self_certainty", "self_perplexity")  # without weight to begin with
        ),
    ],
)
def test_an_ablation_keeps_the_weights_of_its_family(name: str, weighted: tuple[str, ...]) -> None:
    full = {key: point["weight"] for key, point in reward("full")["set_points"].items()}
    found = {key: point["weight"] for key, point in reward(name)["set_points"].items()}
    assert found == {key: full[key] if key in weighted else 0 for key in full}


def test_both_families_weigh_the_same() -> None:
    weights = {key: point["weight"] for key, point in reward("full")["set_points"].items()}
    assert sum(weights[name] for name in INTRINSIC_SIGNALS) == pytest.approx(1)
    assert sum(weights[name] for name in AFFECTS) == pytest.approx(1)


# --- wrong values -------------------------------------------------------------------------------

POINT = "reward.set_points.entropy."
WRONG = [
    ("seed", -1, ["seed=-1", "0", "999"]),
    ("seed", 1000, ["seed=1000", "0", "999"]),
    ("device", "tpu", ["device=tpu", *DEVICES]),
    ("dtype", "int8", ["dtype=int8", *DTYPES]),
    ("tracker.mode", "loud", ["tracker.mode=loud", "offline", "online"]),
    ("trainer.lr", 0, ["trainer.lr=0", "above 0"]),
    ("trainer.lr", -1e-3, ["trainer.lr=-0.001", "above 0"]),
    ("trainer.lr", float("nan"), ["trainer.lr=nan", "above 0"]),
    ("trainer.batch_size", 0, ["trainer.batch_size=0", "above 0"]),
    ("trainer.max_steps", 0, ["trainer.max_steps=0", "above 0"]),
    ("trainer.epochs", 0, ["trainer.epochs=0", "above 0"]),
    ("trainer.clip_range", 0, ["trainer.clip_range=0", "above 0"]),
    ("trainer.max_grad_norm", 0, ["trainer.max_grad_norm=0", "above 0"]),
    ("trainer.gamma", 1.5, ["trainer.gamma=1.5", "between 0 and 1"]),
    ("trainer.gae_lambda", -0.1, ["trainer.gae_lambda=-0.1", "between 0 and 1"]),
    ("trainer.kl.coef", -1, ["trainer.kl.coef=-1", "0 or above"]),
    ("trainer.kl.kind", "loose", ["trainer.kl.kind=loose", "fixed", "adaptive", "pid"]),
    ("trainer.kl.target", 0, ["trainer.kl.target=0", "above 0"]),
    ("trainer.kl.gain", 0, ["trainer.kl.gain=0", "above 0"]),
    ("trainer.kl.integral", 0, ["trainer.kl.integral=0", "above 0"]),
    ("trainer.kl.derivative", -1, ["trainer.kl.derivative=-1", "0 or above"]),
    ("trainer.kl.relax", 2, ["trainer.kl.relax=2", "between 0 and 1"]),
    ("trainer.kl.max_factor", 1, ["trainer.kl.max_factor=1", "above 1"]),
    ("trainer.kl_estimator", "k2", ["trainer.kl_estimator=k2", "k1", "k3"]),
    ("trainer.lr_decay", "step", ["trainer.lr_decay=step", "constant", "linear", "cosine"]),
    ("trainer.critic", "own", ["trainer.critic=own", "shared", "lora"]),
    ("trainer.value_coef", -1, ["trainer.value_coef=-1", "0 or above"]),
    ("reward.mode", "slope", ["reward.mode=slope", "level", "reduction"]),
    ("reward.levels", "meant", ["reward.levels=meant", "read", "felt"]),
    ("trainer.entropy_coef", -1, ["trainer.entropy_coef=-1", "0 or above"]),
    ("trainer.target_kl", 0, ["trainer.target_kl=0", "above 0", "null"]),
    ("rollout.turns", 0, ["rollout.turns=0", "above 0"]),
    ("rollout.max_new_tokens", 0, ["rollout.max_new_tokens=0", "above 0"]),
    ("work.rounds", 0, ["work.rounds=0", "above 0"]),
    ("work.completions", -1, ["work.completions=-1", "above 0"]),
    ("memory.limit_gb", 0, ["memory.limit_gb=0", "above 0", "null"]),
    ("lora.rank", 0, ["lora.rank=0", "above 0"]),
    ("lora.rank", 100_000_000, ["lora.rank=100000000", "at most 1024"]),
    ("lora.dropout", 1.0, ["lora.dropout=1.0", "below 1"]),
    ("lora.alpha", 0, ["lora.alpha=0", "above 0"]),
    ("lora.dropout", 1.5, ["lora.dropout=1.5", "between 0 and 1"]),
    ("lora.layers", [0.7, 0.2], ["lora.layers=[0.7, 0.2]", "low then high"]),
    ("lora.layers", [0.5], ["lora.layers=[0.5]", "two fractions"]),
    ("lora.layers", [0.0, 0.5, 1.0], ["lora.layers=[0.0, 0.5, 1.0]", "two fractions"]),
    ("lora.layers", [0.5, 12.0], ["lora.layers=[0.5, 12.0]", "fractions"]),
    ("eval.episodes", 1, ["eval.episodes=1", "at least 2"]),
    ("eval.prompted", " ", ["eval.prompted=' '", "says nothing", "null"]),
    ("eval.bootstrap_samples", 0, ["eval.bootstrap_samples=0", "above 0"]),
    ("signals.intrinsic.names", ["entropi"], ["signals.intrinsic", "entropi", *INTRINSIC_SIGNALS]),
    ("signals.intrinsic.norm_layers", [1.5], ["norm_layers=1.5", "between 0 and 1"]),
    ("signals.intrinsic.norm_layers", [], ["signals.intrinsic.norm_layers", "empty"]),
    ("signals.affect.names", ["joy"], ["signals.affect.names", "joy", *AFFECTS]),
    ("signals.affect.names", [], ["signals.affect.names is empty", "name one"]),
    ("signals.affect.layers", [-0.5], ["signals.affect.layers=-0.5", "between 0 and 1"]),
    ("signals.affect.layers", [], ["signals.affect.layers is empty", "name one"]),
    ("signals.affect.pooling", ["first"], ["signals.affect.pooling=first", *POOLINGS]),
    ("signals.affect.pooling", [], ["signals.affect.pooling is empty", "name one"]),
    ("signals.affect.regularisation", [0.0], ["regularisation=0", "above 0"]),
    ("signals.affect.regularisation", [], ["signals.affect.regularisation is empty", "name one"]),
    ("signals.affect.require", "good", ["affect.require=good", "trusted", "weak", "any"]),
    ("signals.affect.stale_auroc_drop", 0, ["affect.stale_auroc_drop=0", "above 0"]),
    ("signals.affect.stale_distance", -0.1, ["affect.stale_distance=-0.1", "above 0"]),
    ("signals.affect.perception", "both", ["perception=both", "reference", "policy"]),
    ("signals.author_groups", 9, ["signals.author_groups=9", "at least 10", "null"]),
    ("signals.calibration_episodes", 3, ["signals.calibration_episodes=3", "at least 4"]),
    ("signals.calibration_temperature", 0, ["calibration_temperature=0", "above 0"]),
    ("signals.validation_replies", 0, ["signals.validation_replies=0", "above 0"]),
    (f"{POINT}tolerance", -1, ["tolerance=-1", "above 0", "auto"]),
    (f"{POINT}tolerance", 0, ["tolerance=0", "above 0", "auto"]),
    (f"{POINT}tolerance", "narrow", ["tolerance=narrow", "number", "auto"]),
    (f"{POINT}tolerance", float("inf"), ["tolerance=inf", "number", "auto"]),
    (f"{POINT}tolerance", True, ["tolerance=True", "number", "auto"]),
    (f"{POINT}setpoint", float("nan"), ["setpoint=nan", "number", "auto"]),
    (f"{POINT}setpoint", None, ["setpoint=None", "number", "auto"]),
    (f"{POINT}weight", -0.5, ["weight=-0.5", "0 or above"]),
    (f"{POINT}weight", float("nan"), ["weight=nan", "0 or above"]),
    (f"{POINT}min_tolerance", 0, ["min_tolerance=0", "above 0"]),
    (f"{POINT}side", "left", ["side of a set point=left", *SIDES]),
    (f"{POINT}dead_zone", -0.1, ["dead_zone=-0.1", "0 or above"]),
    (f"{POINT}dead_zone", float("nan"), ["dead_zone=nan", "0 or above"]),
    (f"{POINT}dead_zone", float("inf"), ["dead_zone=inf", "0 or above"]),
    ("reward.terms.mine", {"weight": 1.0}, ["reward.terms.mine", "_target_"]),
    ("bot.initial.joy", 0.5, ["curious", "joy", *AFFECTS]),
    ("bot.gains.joy", {"relevance": 1.0}, ["curious", "joy", *AFFECTS]),
    ("bot.gains.boredom.charm", 1.0, ["curious", "charm", *REPLY_FEATURES]),
    ("bot.initial.boredom", 1.2, ["boredom=1.2", "curious", "between 0 and 1"]),
    ("bot.initial.boredom", -0.1, ["boredom=-0.1", "curious", "between 0 and 1"]),
    ("bot.initial.sentiment", -1.5, ["sentiment=-1.5", "curious", "between -1 and 1"]),
    ("bot.inertia", 2, ["inertia=2", "curious", "between 0 and 1"]),
    ("bot.noise", -1, ["noise=-1", "curious", "between 0 and 1"]),
    ("bot.schedule", [], ["schedule", "curious", "empty", "opening"]),
]


@pytest.fixture(scope="module")
def curious() -> DictConfig:
    """A small valid config."""
    config = draft("bot=curious")
    converted(config)
    return config


@pytest.mark.parametrize(
    ("key", "value", "parts"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG]
)
def test_a_wrong_value_is_refused(
    curious: DictConfig, key: str, value: object, parts: list[str]
) -> None:
    """The message names the key, the value and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        converted(changed(curious, **{key.replace(".", "__"): value}))
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 999),
        ("lora.dropout", 0.0),
        ("lora.layers", [0.0, 1.0]),
        ("trainer.gamma", 0.0),
        ("trainer.gamma", 1.0),
        ("trainer.kl.coef", 0.0),
        ("trainer.target_kl", None),
        ("trainer.kl.relax", 0.0),
        ("trainer.kl.kind", "adaptive"),
        ("eval.episodes", 2),
        ("signals.author_groups", 10),
        ("signals.author_groups", None),
        ("signals.calibration_episodes", 4),
        (f"{POINT}weight", 0.0),
        (f"{POINT}setpoint", 0),
        (f"{POINT}setpoint", -3.5),
        (f"{POINT}tolerance", 1e-9),
        (f"{POINT}dead_zone", 0.0),
        (f"{POINT}side", "below"),
        ("signals.affect.pooling", ["last"]),
        ("signals.affect.require", "any"),
        ("signals.affect.stale_distance", 1e-9),
        ("signals.validation_replies", 1),
        ("bot.initial.sentiment", -1.0),
        ("bot.initial.boredom", 0.0),
        ("bot.noise", 0.0),
    ],
)
def test_a_value_at_its_limit_is_accepted(curious: DictConfig, key: str, value: object) -> None:
    config = changed(curious, **{key.replace(".", "__"): value})
    converted(config)
    assert OmegaConf.select(config, key) == value


SERVED = {"source": "endpoint", "url": "http://localhost:8000/v1", "model": "m"}
SECRET = "sk-secret-0123456789"
MODEL_BOT_WRONG = [
    ({"source": "oracle"}, "bot.source=oracle is unknown; choose one of base, local, endpoint"),
    ({"source": "local"}, "bot.source=local needs bot.path="),
    ({"source": "endpoint", "model": "m"}, "bot.source=endpoint needs bot.url="),
    ({**SERVED, "model": None}, "bot.source=endpoint needs bot.model="),
    ({"path": "models/x"}, "bot.path is not read with bot.source=base; leave it out"),
    ({**SERVED, "path": "models/x"}, "bot.path is not read with bot.source=endpoint"),
    ({**SERVED, "url": "localhost:8000"}, "bot.url must be such as http://localhost:8000/v1"),
    ({**SERVED, "url": f"https://me:{SECRET}@host/v1"}, "bot.url must be such as http://"),
    ({**SERVED, "url": f"https://host/v1?key={SECRET}"}, "bot.url must be such as http://"),
    ({**SERVED, "api_key_env": SECRET}, "bot.api_key_env must be the name of an environment"),
    ({"temperature": 0.0}, "bot.temperature=0.0 must be above 0"),
    ({"max_tokens": 0}, "bot.max_tokens=0 must be above 0"),
    ({"max_tokens": 100_001}, "bot.max_tokens=100001 is too much; use at most 100000"),
    ({"timeout_s": 0.0}, "bot.timeout_s=0.0 must be above 0"),
    ({"retries": -1}, "bot.retries=-1 must be 0 or above"),
    ({"retries": 101}, "bot.retries=101 is too much; use at most 100"),
    ({"concurrency": 0}, "bot.concurrency=0 must be above 0"),
    ({"concurrency": 257}, "bot.concurrency=257 is too much; use at most 256"),
]


@pytest.mark.parametrize(("values", "message"), MODEL_BOT_WRONG)
def test_a_wrong_value_of_a_user_played_by_a_model_is_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        config_part("bot=model", **values)
    assert SECRET not in str(caught.value)


def test_what_users_say_follows_from_the_config_only_where_the_base_plays_them() -> None:
    kept = [config_part("bot=curious"), config_part("bot=model")]
    changing = [
        config_part("bot=model", **SERVED, api_key_env="MY_KEY"),
        config_part("bot=model", source="local", path="models/x"),
        OwnBotConfig(_target_="mine.bot.Guests", name="guests"),
    ]
    assert [bot.follows_from_config for bot in (*kept, *changing)] == [True] * 2 + [False] * 3


@pytest.mark.parametrize("trainer", GROUPS["trainer"])
@pytest.mark.parametrize("key", ["lr", "batch_size", "max_steps"])
def test_every_trainer_refuses_zero(trainer: str, key: str) -> None:
    config = chosen("trainer", trainer)
    with pytest.raises(ValueError, match=rf"^trainer\.{key}=0(\.0)? must be above 0"):
        converted(changed(config, **{f"trainer__{key}": 0}))


# --- what spans several fields ------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["grpo", "rloo", "dpo"])
def test_a_batch_holds_whole_groups(trainer: str) -> None:
    config = chosen("trainer", trainer)
    with pytest.raises(ValueError, match=r"trainer\.batch_size=10 must be a multiple of .*size=4"):
        converted(changed(config, trainer__batch_size=10))
    with pytest.raises(ValueError, match=r"trainer\.group_size=1 .*at least 2"):
        converted(changed(config, trainer__group_size=1))
    converted(changed(config, trainer__batch_size=10, trainer__group_size=5))


DPO_WRONG = [
    ("epochs", 0, "trainer.epochs=0 must be above 0"),
    ("beta", 0.0, "trainer.beta=0.0 must be above 0"),
    ("min_margin", 0.0, "trainer.min_margin=0.0 must be above 0"),
    ("minibatch_pairs", 0, "trainer.minibatch_pairs=0 must be above 0"),
    ("micro_batch_pairs", 3, "trainer.minibatch_pairs=4 must be a multiple of trainer.micro"),
    ("nll_coef", -1.0, "trainer.nll_coef=-1.0 must be 0 or above"),
    ("max_length_ratio", 0.9, "trainer.max_length_ratio=0.9 must be 1 or above, or null"),
    ("held_out", 1.0, "trainer.held_out=1.0 must be 0 or above and below 1"),
]


@pytest.mark.parametrize(("key", "value", "message"), DPO_WRONG)
def test_dpo_refuses_what_it_cannot_train_with(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        converted(changed(chosen("trainer", "dpo"), **{f"trainer__{key}": value}))


def test_a_micro_batch_may_be_larger_than_the_minibatch() -> None:
    found = converted(changed(chosen("trainer", "dpo"), trainer__micro_batch_pairs=9)).trainer
    assert (found.minibatch_pairs, found.micro_batch_pairs) == (4, 9)


@pytest.mark.parametrize("kind", ["adaptive", "pid"])
def test_a_price_of_zero_that_is_to_be_multiplied_is_refused(
    curious: DictConfig, kind: str
) -> None:
    config = changed(curious, trainer__kl__kind=kind, trainer__kl__coef=0.0)
    with pytest.raises(ValueError, match=rf"trainer\.kl\.coef=0 stays 0 .*kind={kind}.*kind=fixed"):
        converted(config)


SHARED_BY_TRAINERS = [
    ("kl.kind", "loose", "fixed, adaptive, pid"),
    ("kl.target", -0.1, "above 0"),
    ("kl_estimator", "k2", "k1, k3"),
    ("lr_decay", "step", "constant, linear, cosine"),
    ("warmup_steps", -1, "0 or above"),
    ("entropy_coef", -0.1, "0 or above"),
    ("entropy_target", 0.0, "above 0 nats per token, or null"),
    ("entropy_integral", 0.0, "above 0"),
    ("entropy_proportional", -0.1, "0 or above"),
    ("kl_cov_share", 1.5, "between 0 and 1"),
    ("kl_cov_coef", 0.0, "above 0"),
    ("target_kl", -1.0, "null"),
    ("minibatches", 0, "above 0"),
    ("micro_batch_tokens", 0, "above 0"),
]


@pytest.mark.parametrize("trainer", ["ppo", "grpo", "rloo"])
@pytest.mark.parametrize(("key", "value", "allowed"), SHARED_BY_TRAINERS)
def test_every_policy_gradient_refuses_what_all_share(
    trainer: str, key: str, value: object, allowed: str
) -> None:
    config = changed(chosen("trainer", trainer), **{f"trainer__{key.replace('.', '__')}": value})
    with pytest.raises(ValueError, match=rf"^trainer\.{re.escape(key)}={value}\b") as caught:
        converted(config)
    assert allowed in str(caught.value)
    assert "\n" not in str(caught.value)


def test_kl_cov_is_refused_where_no_token_can_have_moved() -> None:
    config = changed(chosen("trainer", "grpo"), trainer__kl_cov_share=0.1, trainer__minibatches=1)
    with pytest.raises(ValueError, match=r"^trainer\.kl_cov_share=0\.1 does nothing .*minibatches"):
        converted(config)
    converted(changed(config, trainer__epochs=2))


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_groups_are_compared_by_episode_or_by_turn(trainer: str) -> None:
    config = chosen("trainer", trainer)
    with pytest.raises(ValueError, match=r"trainer\.credit=token is unknown; .* episode, turn"):
        converted(changed(config, trainer__credit="token"))
    with pytest.raises(ValueError, match=r"trainer\.gamma=0\.9 .*trainer\.credit=turn"):
        converted(changed(config, trainer__gamma=0.9))
    by_turn = changed(config, trainer__credit="turn")
    with pytest.raises(ValueError, match=r"trainer\.gamma=1\.5 must lie between 0 and 1"):
        converted(changed(by_turn, trainer__gamma=1.5))
    converted(changed(by_turn, trainer__gamma=0.9))


@pytest.mark.parametrize(
    ("trainer", "key"), [("grpo", "critic"), ("rloo", "value_coef"), ("ppo", "group_size")]
)
def test_a_key_of_another_trainer_is_refused(trainer: str, key: str) -> None:
    config = draft(f"trainer={trainer}", "bot=curious").copy()
    with pytest.raises(OmegaConfBaseException, match=rf"full_key: trainer\.{key}"):
        OmegaConf.update(config, f"trainer.{key}", 1)


def test_groups_are_whole_numbers() -> None:
    config = draft("trainer=grpo", "bot=curious").copy()
    with pytest.raises(OmegaConfBaseException, match=r"'2\.5'.*Integer[\s\S]*trainer\.group_size"):
        OmegaConf.update(config, "trainer.group_size", 2.5)


@pytest.mark.parametrize("kind", ["fixed", "adaptive", "pid"])
def test_a_critic_of_its_own_goes_with_every_price_of_kl(curious: DictConfig, kind: str) -> None:
    found = converted(changed(curious, trainer__critic="lora", trainer__kl__kind=kind)).trainer
    assert isinstance(found, PPOConfig)
    assert (found.critic, found.kl.kind) == ("lora", kind)


def without_weights(config: DictConfig) -> DictConfig:
    return changed(
        config, **{f"reward__set_points__{k}__weight": 0 for k in config.reward.set_points}
    )


def test_weights_that_sum_to_zero_are_refused(curious: DictConfig) -> None:
    with pytest.raises(ValueError, match=r"reward\.set_points sum to 0.*above 0"):
        converted(without_weights(curious))


def test_own_terms_need_no_weighted_signal(curious: DictConfig) -> None:
    config = changed(without_weights(curious), reward__terms__mine={"_target_": "a.b"})
    assert converted(config).reward.terms == {"mine": {"_target_": "a.b"}}


def test_a_reward_without_set_points_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward\.set_points sum to 0"):
        RewardConfig(set_points={})


def test_a_weight_on_a_signal_that_is_not_measured_is_refused(curious: DictConfig) -> None:
    with pytest.raises(ValueError, match="sentiment") as caught:
        converted(changed(curious, signals__affect=None))
    message = str(caught.value)
    assert "reward.set_points.sentiment" in message
    assert "0.2" in message
    assert all(name in message for name in INTRINSIC_SIGNALS)
    assert "weight to 0" in message


def test_a_signal_that_is_left_out_needs_weight_zero(curious: DictConfig) -> None:
    others = [name for name in INTRINSIC_SIGNALS if name != "repetition"]
    shorter = changed(curious, signals__intrinsic__names=others)
    with pytest.raises(ValueError, match=r"reward\.set_points\.repetition has weight 0\.2"):
        converted(shorter)
    config = converted(changed(shorter, reward__set_points__repetition__weight=0))
    assert "repetition" not in config.signals.names


def test_without_any_signal_nothing_is_measured(curious: DictConfig) -> None:
    with pytest.raises(ValueError, match=r"no signal is measured.*signals=\[intrinsic,affect\]"):
        converted(changed(curious, signals__intrinsic=None, signals__affect=None))


@pytest.mark.parametrize(
    ("family", "names"), [("intrinsic", INTRINSIC_SIGNALS), ("affect", AFFECTS)]
)
def test_one_family_alone_works(family: str, names: tuple[str, ...]) -> None:
    config = converted(chosen("signals", family))
    assert config.signals.names == names
    assert (config.signals.intrinsic is None) == (family != "intrinsic")
    assert (config.signals.affect is None) == (family != "affect")


def test_an_empty_list_of_bots_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bot\.bots is empty.*bot=mixed"):
        MixedBotConfig(name="nobody", bots={})


# --- users of the held-out episodes ---------------------------------------------------------------


def test_held_out_episodes_have_the_users_of_training_unless_others_are_chosen() -> None:
    same, other = converted(draft("bot=curious")), converted(draft("eval.bots=frustrated"))
    assert (same.eval.bots, same.held_out_bot.name) == (None, "curious")
    assert (other.bot.name, other.held_out_bot.name) == ("mixed", "frustrated")
    assert other.held_out_bot == converted(draft("bot=frustrated")).bot
    several = converted(draft("bot=bored", "eval.bots=mixed", "eval.bots.bots.bored.noise=0.2"))
    assert isinstance(several.held_out_bot, MixedBotConfig)
    assert several.held_out_bot.bots["bored"].noise == 0.2
    assert converted(draft("eval.bots=null")).eval.bots is None


def test_a_choice_at_another_place_is_told_to_hydra_as_it_reads_it() -> None:
    typed = ["bot=bored", "eval.bots=mixed,curious", "eval.bots.noise=0", "eval.bots=null"]
    assert as_choices(typed) == [typed[0], "bot@eval.bots=mixed,curious", *typed[2:]]


@pytest.mark.parametrize("value", ["[frustrated,bored]", "{name: bored}"])
def test_held_out_episodes_have_one_population(value: str) -> None:
    with pytest.raises(HomeostatError, match="must be one option of bot, such as"):
        as_choices([f"eval.bots={value}"])


def test_only_an_experiment_prompts_the_base() -> None:
    assert converted(draft()).eval.prompted is None
    assert converted(draft("experiment=earn")).eval.prompted == "Be honest, and keep calm."


# --- what Hydra and OmegaConf refuse ------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.lrr", 1),
        ("trainer.lr", "abc"),
        ("reward.set_points.entropi", {"weight": 1}),
        ("bot.initial.boredom", "very"),
        ("rollout.turns", 2.5),
        ("reward.pathwise", "often"),
    ],
)
def test_a_wrong_key_or_type_is_refused(curious: DictConfig, key: str, value: object) -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.update(curious.copy(), key, value)
    assert f"full_key: {key}" in str(caught.value)


PATHWISE = {
    ("reward=relational_only",): r"entropy, activation_norm, self_certainty, and none of these has",
    ("reward=self_certainty",): r"none of these has a weight above 0; .*reward\.pathwise=false",
    (
        "reward.mode=reduction",
    ): r"reward\.mode=reduction pays something else; use reward\.mode=level",
    ("trainer=dpo",): r"trainer=dpo has none; use ppo, grpo or rloo, or reward\.pathwise=false",
    ("trainer=steer_heal", "persona=calm"): r"trainer=steer_heal has none; use ppo, grpo or rloo",
}


@pytest.mark.parametrize(("others", "message"), PATHWISE.items(), ids=map(" ".join, PATHWISE))
def test_what_cannot_be_followed_pathwise_is_refused(others: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(draft("bot=curious", "reward.pathwise=true", *others))


def test_felt_levels_of_what_is_not_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reward\.affect=felt nothing is read"):
        converted(draft("bot=curious", "reward=true_affect", "reward.levels=felt"))


@pytest.mark.parametrize("trainer", ["ppo", "grpo", "rloo", "none"])
def test_what_can_be_followed_pathwise_is(trainer: str) -> None:
    reward = converted(draft("bot=curious", "reward.pathwise=true", f"trainer={trainer}")).reward
    assert reward.pathwise
    assert not converted(draft("bot=curious", f"trainer={trainer}")).reward.pathwise


@pytest.mark.parametrize(("key", "group"), [("trainer", "trainer"), ("eval.bots", "bot")])
def test_an_unknown_option_is_refused_with_the_known_ones(key: str, group: str) -> None:
    with pytest.raises(HydraException) as caught:
        draft(f"{key}=magic")
    known = ", ".join(GROUPS[group])
    assert explain(caught.value) == f"magic is no option of {group}; choose one of {known}."


def test_a_local_model_needs_its_path() -> None:
    config = draft("model=local", "bot=curious")
    with pytest.raises(OmegaConfBaseException, match=r"full_key: model\.path"):
        converted(config)


def test_only_four_bit_quantisation_is_known() -> None:
    with pytest.raises(ValueError, match=r"quantization=8bit is unknown; choose 4bit, or null"):
        converted(draft("model=qwen3_0.6b", "model.quantization=8bit"))
    config = converted(draft("model=qwen3_0.6b", "model.quantization=4bit"))
    assert config.model.quantization == "4bit"


# --- what is imported ---------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "peft", "sklearn", "scipy", "matplotlib", "wandb")
SCRIPT = """
import json, sys
import homeostat.cli
from omegaconf import OmegaConf
from homeostat.config.register import compose_run
config = OmegaConf.to_object(compose_run("bot=curious"))
homeostat.cli.help_text()
print(json.dumps([type(config).__name__, sorted(sys.modules)]))
"""


def test_composing_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    kind, modules = json.loads(done.stdout)
    assert kind == "RunConfig"
    assert "homeostat.config" in modules
    assert [name for name in HEAVY if name in modules] == []


# torch finds the device, which the first line must not be without.
LATER = (
    *("transformers", "peft", "pandas", "lifelines", "scipy", "sklearn", "statsmodels"),
    *("matplotlib", "wandb", "trl", "accelerate", "datasets"),
)
FIRST_LINE = """
import json, sys
from pathlib import Path
import homeostat.cli
from omegaconf import OmegaConf
from homeostat.config.register import compose_run
from homeostat.report.console import Console
from homeostat.runs.run import run

class First(Console):
    def say(self, message):
        print(json.dumps([message, sorted(sys.modules)]))
        sys.exit()

config = OmegaConf.to_object(compose_run("model=tiny_random", "scale=smoke"))
run(config, Path(sys.argv[1]), First())
"""


def test_the_first_line_of_a_run_waits_for_no_library_of_models(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LINE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    message, modules = json.loads(done.stdout)
    assert message.startswith("ppo on tiny_random, ")
    assert "homeostat.runs.run" in modules
    assert [name for name in LATER if name in modules] == []


def test_a_narration_that_is_no_regular_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"persona\.narration: '\(' is no regular expression"):
        config_part("persona=love", narration=["fine", "("])
