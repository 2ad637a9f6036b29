"""A run folder from somebody else is data: what it names is not imported, run or looked up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from homeostat.cli import _start
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
        ("tracker.run_name", "${oc.env:HOME}", r"tracker\.run_name=\$\{oc\.env:HOME\} .*looked up"),
        ("persona", {"prompts": ["a", r"\\${oc.env:HOME}"]}, r"persona\.prompts\.1"),
        ("reward.terms.x.function", "spy.term", r"spy\.term \(reward\.terms\.x\.function\)"),
        ("bot.api_key_env", "AWS_SECRET_ACCESS_KEY", r"AWS_SECRET_ACCESS_KEY \(bot\.api_key_env\)"),
    ],
)
def test_what_is_more_than_data_is_refused(
    folder: Path, path: str, value: Any, says: str, key: str
) -> None:
    spoil(folder, path, value)
    with pytest.raises(HomeostatError, match=says) as caught:
        resumed(folder, key=key)
    assert str(folder) in str(caught.value)


def test_nothing_is_imported_on_the_way_to_a_refusal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "spying.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(folder)
    spoil(folder, "model._target_", "spying.load")
    monkeypatch.setattr(sys, "argv", ["homeostat", f"resume={folder}"])
    with pytest.raises(HomeostatError, match=r"spying\.load \(model\)"):
        _start([f"resume={folder}"])
    assert "spying" not in sys.modules


def test_a_value_that_yaml_makes_an_object_of_is_refused(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    text = text.replace(
        "homeostat.models.tiny.load_tiny",
        "!!python/object/apply:pathlib.PosixPath [this.s]",
    )
    (folder / "config.yaml").write_text(text.replace("\neval:\n", "\neval:\n  bogus: 1\n"))
    with pytest.raises(HomeostatError, match=r"model\._target_ .*PosixPath|this\.s \(model\)"):
        resumed(folder, "eval=homeostasis")
    assert "this" not in sys.modules


def test_how_a_run_is_resumed_is_not_taken_from_its_folder(folder: Path) -> None:
    spoil(folder, "resume_override", True)
    spoil(folder, "allow_targets", ["os"])
    found = resumed(folder)
    assert found["resume_override"] is False
    assert found["allow_targets"] == []


def test_what_the_user_trusts_is_let_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(folder, "reward.terms.x", {"_target_": "my_terms.short.brevity", "weight": 1.0})
    with pytest.raises(HomeostatError, match=r"allow_targets=\[my_terms\.short\.brevity\]"):
        resumed(folder, "allow_targets=[my_terms.sho]")
    (folder / "my_terms").mkdir()
    (folder / "my_terms" / "__init__.py").write_text("import os")
    (folder / "my_terms" / "short.py").write_text("def brevity(*_): return []")
    monkeypatch.syspath_prepend(folder)
    for allowed in ("[my_terms]", "[other,my_terms.short.brevity]", "my_terms.short"):
        found = resumed(folder, f"allow_targets={allowed}")
        assert found["reward"]["terms"]["x"]["_target_"] == "my_terms.short.brevity"
    spoil(folder, "reward.terms.x", {"_target_": "my_terms.os.system", "weight": 1.0})
    with pytest.raises(HomeostatError, match=r"my_terms\.os\.system"):
        resumed(folder, "allow_targets=[my_terms]")


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
