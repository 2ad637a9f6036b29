"""Configs that an earlier layout wrote are read as if they had been written today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from homeostat.config.model import TEMPLATE_DATE
from homeostat.config.resume import changed_values, config_hash, hash_of, save_config
from homeostat.config.run import RunConfig
from homeostat.config.sweep import kept_hash
from homeostat.config.upgrade import ADDED, upgraded

TINY = ("model=tiny_random", "scale=smoke", "persona=love")
# What a class was called in the first layout.
BEFORE = {"none": "", "steer_heal": "homeostat.trainers.steer_heal.SteerHeal"}


def write_before(config: RunConfig, trainer: str, folder: Path) -> None:
    """A run's config as the first layout wrote it, with the hash that it had there."""
    save_config(config, TINY, folder)
    path = folder / "config.yaml"
    kept: Any = OmegaConf.to_container(OmegaConf.load(path))
    kept["trainer"]["_target_"] = BEFORE[trainer]
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(kept)))
    (folder / "config.sha256").write_text("of another layout\n")


@pytest.mark.parametrize("trainer", BEFORE)
def test_a_run_of_before_is_the_same_run(
    trainer: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*TINY, f"trainer={trainer}")
    write_before(config, trainer, tmp_path)
    assert changed_values(config, tmp_path) == {}
    assert kept_hash(tmp_path) == config_hash(config)
    assert kept_hash(tmp_path) != config_hash(composed(*TINY, f"trainer={trainer}", "seed=1"))


def test_a_run_that_is_tested_on_others_keeps_them(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*TINY, "eval.bots=frustrated")
    save_config(config, TINY, tmp_path)
    assert changed_values(config, tmp_path) == {}
    assert kept_hash(tmp_path) == config_hash(config)
    changed = changed_values(composed(*TINY, "eval.bots=bored"), tmp_path)
    assert changed["eval.bots.name"] == ("frustrated", "bored")
    assert "eval.bots" in changed_values(composed(*TINY), tmp_path)


def test_an_option_that_came_later_has_the_value_that_it_had_before(
    composed: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the schema where it has one, also in an entry of a table; else that of `ADDED`."""
    save_config(composed(*TINY), TINY, tmp_path)
    whole: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    kept: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    del kept["model"]["template_date"], kept["reward"]["set_points"]["entropy"]["side"]
    del kept["model"]["name"]
    monkeypatch.setitem(ADDED, "model.name", lambda run: f"seed {run['seed']}")
    found = upgraded(kept)
    assert found["model"]["template_date"] == TEMPLATE_DATE
    assert found["reward"]["set_points"]["entropy"]["side"] == "both"
    assert found["model"]["name"] == "seed 0"
    assert upgraded(whole) == whole


def test_a_run_knows_the_evaluations_that_came_later_unless_it_chose_its_own(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*TINY)
    save_config(config, TINY, tmp_path)
    kept: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    for key in ("evaluations", "items", "files"):
        del kept["eval"][key]["false_beliefs"]
    assert hash_of(upgraded(kept)) == config_hash(config)
    del kept["eval"]["evaluations"]["opinion"]
    assert "false_beliefs" not in upgraded(kept)["eval"]["evaluations"]


@pytest.mark.parametrize(("trainer", "credit"), [("ppo", "token"), ("grpo", "episode")])
def test_credit_is_given_as_it_was_before_there_was_a_choice(
    trainer: str, credit: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*TINY, f"trainer={trainer}", f"trainer.credit={credit}")
    save_config(config, TINY, tmp_path)
    whole: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    later = ("credit", "entropy_target", "kl_cov_share", "mask_truncated")
    kept = whole | {"trainer": {k: v for k, v in whole["trainer"].items() if k not in later}}
    if trainer == "grpo":
        del kept["trainer"]["gamma"]
    assert upgraded(kept) == whole


def test_a_key_that_no_schema_knows_is_kept() -> None:
    assert upgraded({"seed": 1, "gone": 2}) == {"seed": 1, "gone": 2}


def test_a_value_that_was_renamed_is_known_by_its_new_name(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed(*TINY, "reward=true_affect")
    save_config(config, TINY, tmp_path)
    kept: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    kept["reward"]["affect"] = "true"
    assert hash_of(upgraded(kept)) == config_hash(config)
