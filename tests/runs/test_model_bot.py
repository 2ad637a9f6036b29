"""Whole runs with users whom a server plays: it goes down, comes back, and its key is nowhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Chat, serving
from configs import tiny_config

from homeostat.bots.user_model import Request
from homeostat.config.model import PretrainedModelConfig
from homeostat.config.register import config_part
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.load import load_pretrained
from homeostat.models.tiny import load_tiny
from homeostat.report.console import Console
from homeostat.rollout.sampled_user import user_model
from homeostat.runs.run import run
from homeostat.types import Conversation, Turn

pytestmark = pytest.mark.slow  # whole runs
KEY = "sk-secret-0123456789"
SMALL = (
    *("model=tiny_random", "scale=smoke", "device=cpu", "tracker=none"),
    *("signals=[intrinsic]", "reward=intrinsic_only", "eval.suite=[]", "eval.episodes=2"),
    *("trainer.max_steps=3", "trainer.batch_size=2", "trainer.minibatches=2"),
    *("rollout.turns=2", "rollout.max_new_tokens=3"),
    *("bot=model", "bot.source=endpoint", "bot.model=m", "bot.retries=1", "bot.timeout_s=5"),
    "bot.api_key_env=MY_KEY",
)


def by_content(body: dict[str, Any], _: int) -> str:
    """An answer that follows from the request; half of them break the form."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    if digest[0] % 4 < 2:
        return f"I am lost for numbers {digest[1]}."
    feelings = ("sentiment", "curiosity", "frustration", "confusion", "boredom")
    felt = " ".join(f"{n}={b / 255:.2f}" for n, b in zip(feelings, digest, strict=False))
    return f"FEELING: {felt}\nMESSAGE: Number {digest[1]}?"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    torch.set_num_threads(1)
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr("homeostat.report.html.write_report", lambda folder: folder)
    with serving(by_content) as server:
        yield server


def start(config: RunConfig, folder: Path) -> dict[str, Any]:
    run(config, folder, Console(), SMALL)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_server_that_goes_down_costs_nothing_and_the_run_goes_on(
    composed: Callable[..., RunConfig],
    chat: Chat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = composed(*SMALL, f"bot.url={chat.url}")
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / "cache_whole"))
    whole = start(config, tmp_path / "whole")
    assert whole["status"] == "finished"
    counts = whole["user_reports"]
    assert 0 < counts["missing"] < counts["turns"]
    assert counts["at_once"] < counts["turns"] - counts["missing"]
    asked = list(chat.bodies)
    assert len(set(map(str, asked))) == len(asked), "no request is made twice"
    rows = [json.loads(line) for line in (tmp_path / "whole/episodes.jsonl").open()]
    told = [turn["affect"] for row in rows for turn in row["turns"][2::2]]
    assert None in told
    assert any(felt is not None for felt in told)

    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / "cache_broken"))
    chat.bodies.clear()
    last = len(asked) * 3 // 4  # in the middle of an update, after the first checkpoint
    chat.answer = lambda body, n: by_content(body, n) if n < last else (500, '{"error": "down"}')
    with pytest.raises(HomeostatError, match=r"gives no answer .*500.*homeostat resume="):
        start(config, tmp_path / "broken")
    stopped = json.loads((tmp_path / "broken/summary.json").read_text())
    assert stopped["status"].startswith("failed: m at bot.url=")
    assert 0 < stopped["steps"] < 3
    answered = chat.bodies[:last]
    chat.bodies.clear()
    chat.answer = by_content
    resumed = start(replace(config, resume=str(tmp_path / "broken")), tmp_path / "broken")
    assert resumed["status"] == "finished"
    assert resumed["eval"] == whole["eval"]
    for name in ("metrics.jsonl", "episodes.jsonl", "evals/homeostasis.jsonl"):
        found, expected = (tmp_path / run / name for run in ("broken", "whole"))
        assert found.read_bytes() == expected.read_bytes(), name
    assert sorted(map(str, [*answered, *chat.bodies])) == sorted(map(str, asked))

    looked_at = files(tmp_path)
    assert len(looked_at) > 50
    assert not [path for path in looked_at if KEY.encode() in path.read_bytes()]
    assert {*chat.keys} == {f"Bearer {KEY}"}


def test_what_users_tell_may_be_the_reward(
    composed: Callable[..., RunConfig], chat: Chat, tmp_path: Path, cache: Path
) -> None:
    """Some tell nothing; none of the rewards is missing for that."""
    signals = ("signals=[intrinsic,affect]", "reward=true_affect", "signals.affect.require=any")
    config = composed(*SMALL, *signals, f"bot.url={chat.url}", "trainer.max_steps=1")
    summary = start(config, tmp_path / "run")
    assert summary["status"] == "finished"
    assert summary["user_reports"]["missing"] > 0
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert row["reward/valence"] < 0
    assert summary["eval"]["true/boredom"]["n"] > 0
    assert cache.is_dir()


def test_a_missing_key_is_missed_before_the_model_is_loaded(
    composed: Callable[..., RunConfig],
    chat: Chat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MY_KEY")
    monkeypatch.setattr("homeostat.runs.work.load_policy", None)
    with pytest.raises(HomeostatError, match=r"bot\.api_key_env=MY_KEY is not set"):
        start(composed(*SMALL, f"bot.url={chat.url}"), tmp_path)


def test_a_local_model_is_loaded_and_is_never_the_base_again(
    composed: Callable[..., RunConfig], tmp_path: Path, cache: Path
) -> None:
    device, dtype = torch.device("cpu"), torch.float32
    for number, name in enumerate(("base", "other")):
        made = load_tiny(tiny_config(init_seed=number), device, dtype)
        for part in (made.model, made.tokenizer):
            part.save_pretrained(tmp_path / name)
    model_of_run = PretrainedModelConfig(name="base", path=str(tmp_path / "base"))
    policy = Policy(load_pretrained(model_of_run, device, dtype), composed("bot=curious").lora, 0)
    local = {"source": "local", "max_tokens": 4}
    other = user_model(config_part("bot=model", path=str(tmp_path / "other"), **local), policy)
    base = user_model(config_part("bot=model", max_tokens=4), policy)
    assert policy.base.fingerprint in base.identity
    assert policy.base.fingerprint not in other.identity
    asked = [Request(Conversation((Turn("user", "hi"),)), seed) for seed in range(4)]
    assert dict(other.complete(asked)) != dict(base.complete(asked))
    with pytest.raises(HomeostatError, match=r"choose bot\.source=base"):
        user_model(config_part("bot=model", path=str(tmp_path / "base"), **local), policy)
    assert not cache.exists()
