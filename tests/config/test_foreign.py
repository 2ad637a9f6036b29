"""A run folder from somebody else is data: what it names is not imported, run or looked up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from homeostat.config.foreign import own_targets, refuse_foreign
from homeostat.config.register import CONF
from homeostat.config.resume import resumed_config, save_config
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError

Compose = Callable[..., RunConfig]
TINY = ("model=tiny_random", "scale=smoke")


@pytest.fixture
def folder(composed: Compose, tmp_path: Path) -> Path:
    """A run folder of one's own."""
    save_config(composed(*TINY), TINY, tmp_path)
    return tmp_path


def spoil(folder: Path, path: str, value: Any) -> None:
    """Write a value into the kept config, making room for it."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *above, last = path.split(".")
    node = config
    for key in above:
        node = node.setdefault(key, {})
    node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def resumed(folder: Path, *typed: str, key: str = "resume") -> Mapping[str, Any]:
    return resumed_config(CONF / "config.yaml", key, folder, [f"{key}={folder}", *typed])


def test_an_own_run_is_resumed(folder: Path) -> None:
    assert resumed(folder)["seed"] == 0
    assert {"homeostat.trainers.ppo.PPO", "homeostat.evals.answer.EVALUATION"} <= own_targets()


@pytest.mark.parametrize("key", ["resume", "export"])
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("reward.terms.x._target_", "spy.term", r"spy\.term \(reward\.terms\.x\)"),
        ("model._target_", "os.system", r"os\.system \(model\)"),
        ("trainer._target_", "homeostat.files.write_text", r"homeostat\.files\.write_text"),
        ("signals.own.x._target_", "homeostat_evil.f", r"homeostat_evil\.f"),
        ("eval.evaluations.x._target_", "spy.EVALUATION", r"spy\.EVALUATION"),
        ("hydra.callbacks.x", {"_target_": "joblib.load"}, "sets hydra"),
        ("defaults", ["x"], "sets defaults"),
        ("wandb.name", "${oc.env:HOME}", r"wandb\.name=\$\{oc\.env:HOME\} .*looked up"),
        ("persona", {"prompts": ["a", r"\\${oc.env:HOME}"]}, r"persona\.prompts\.1"),
    ],
)
def test_what_is_more_than_data_is_refused(
    folder: Path, path: str, value: Any, says: str, key: str
) -> None:
    spoil(folder, path, value)
    with pytest.raises(HomeostatError, match=says) as caught:
        resumed(folder, key=key)
    assert str(folder) in str(caught.value)
    assert "spy" not in sys.modules


def test_what_the_user_trusts_is_let_through(folder: Path) -> None:
    spoil(folder, "reward.terms.x", {"_target_": "my_terms.short.brevity", "weight": 1.0})
    with pytest.raises(HomeostatError, match=r"allow_targets=\[my_terms\.short\.brevity\]"):
        resumed(folder, "allow_targets=[my_terms.sho]")
    for allowed in ("[my_terms]", "[other,my_terms.short.brevity]", "my_terms.short"):
        found = resumed(folder, f"allow_targets={allowed}")
        assert found["reward"]["terms"]["x"]["_target_"] == "my_terms.short.brevity"


def test_text_that_only_looks_like_a_lookup_is_data(composed: Compose, tmp_path: Path) -> None:
    config = composed(*TINY, r"eval.prompted='Say \${oc.env:HOME}.'")
    assert config.eval.prompted == "Say ${oc.env:HOME}."
    save_config(config, TINY, tmp_path)
    assert resumed(tmp_path)["eval"]["prompted"] == r"Say \${oc.env:HOME}."


def test_leaves_of_every_kind_are_looked_at(tmp_path: Path) -> None:
    hidden = {"a": [{"b": [{"_target_": "spy.deep"}]}]}
    with pytest.raises(HomeostatError, match=r"spy\.deep \(a\.0\.b\.0\)"):
        refuse_foreign(hidden, tmp_path, "resume", ())
    refuse_foreign(
        {"a": [1, None, {"_target_": ""}]} | {"b": {"_target_": "homeostat.trainers.ppo.PPO"}},
        tmp_path,
        "resume",
        [""],
    )
