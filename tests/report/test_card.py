"""The model card says what the run found, and what it names stays text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from configs import tiny_config
from peft import PeftModel

from homeostat.config.resume import save_config
from homeostat.config.run import RunConfig
from homeostat.models.adapter_files import save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.report.card import write_card

VALENCE = {"before": -2.0, "after": -1.5, "diff": 0.5, "ci95": [0.25, 0.75], "n": 24}
CLAIM = {"before": 0.5, "after": 0.25, "diff": -0.25, "ci95": None, "n": 4, "p_holm": 0.5}


def leave(folder: Path, config: RunConfig, **summary: Any) -> Path:
    """A run folder with what a card is made of."""
    folder.mkdir()
    save_config(config, [], folder)
    known = {
        **{"status": "finished", "trainer": "ppo", "learns": True, "steps": 2, "bot": "mixed"},
        "rewarded_affects": ["frustration"],
        "eval": {"valence": VALENCE, "term/x": VALENCE | {"diff": None, "ci95": None}},
        "suite": {"answer": {"claim": "a", "metrics": {"a": CLAIM}, "caveat": "copying"}},
    }
    (folder / "summary.json").write_text(json.dumps(known | summary))
    return folder


def card(run: Path, kind: str = "adapter") -> tuple[dict[str, Any], str]:
    """Front matter and body of the card that is written."""
    write_card(run, run, kind)
    _, front, body = (run / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_has_base_licence_figures_and_limits(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    front, body = card(leave(tmp_path / "run", composed("seed=3")))
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (front["license"], front["library_name"]) == ("apache-2.0", "peft")
    assert front["tags"] == ["homeostat", "ppo"]
    assert "| valence | -2.000 | -1.500 | +0.500 | [+0.250, +0.750] | 24 |" in body
    assert "| answer | 0.500 | 0.250 | -0.250 | — | 4 |" in body
    assert "- answer: copying" in body
    assert "term/x" not in body, "what was not measured after training is no figure"
    assert "seed 3" in body
    assert "repetition, frustration near set points" in body, "what was not read was not paid"
    assert "nothing was compared with human judgement" in body
    assert 'from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in body
    merged, body = card(tmp_path / "run", "merged")
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")
    assert "peft" not in body


def test_a_base_that_is_a_folder_here_is_not_named_as_one_of_the_hub(
    composed: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    local = composed("model=local", "model.path=models/mine")
    front, body = card(leave(tmp_path / "run", local, status="interrupted"))
    assert "base_model" not in front
    assert "license" not in front
    assert "models/mine" not in body
    assert "The run is not finished: interrupted." in body
    hub = composed("model=local", "model.path=somebody/theirs")
    front, _ = card(leave(tmp_path / "other", hub))
    assert front["base_model"] == "somebody/theirs"
    assert "license" not in front, "it is not known"


def test_names_are_no_markup(composed: Callable[..., RunConfig], tmp_path: Path) -> None:
    evil = "<script>|`\x1b[1m"
    config = composed("model=local", "model.path=a")
    config.model.name, config.bot.name = evil, evil
    caveat = {"answer": {"claim": "a", "metrics": {"a": CLAIM}, "caveat": evil}}
    _, body = card(leave(tmp_path / "run", config, suite=caveat, status=evil))
    assert "<script>" not in body
    assert "\x1b" not in body
    assert "&lt;script&gt;\\|\\`␛" in body


def test_peft_loads_an_adapter_with_its_card(
    composed: Callable[..., RunConfig], make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    run = leave(tmp_path / "run", composed())
    policy = make_policy()
    save_adapter(policy, run / "adapters")
    write_card(run, run / "adapters")
    base = load_tiny(tiny_config(), policy.device, policy.dtype)
    loaded = PeftModel.from_pretrained(base.model, str(run / "adapters"))
    assert loaded.peft_config["default"].r == 4
