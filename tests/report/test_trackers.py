"""A mirror has no gap and no double, whatever has happened to the run that it mirrors."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configs import wandb_config
from matplotlib.image import imsave
from omegaconf import OmegaConf
from wandb.proto.wandb_internal_pb2 import Record

from homeostat.config.register import build, compose_run, config_part, options
from homeostat.config.upgrade import upgraded
from homeostat.errors import HomeostatError
from homeostat.report.metrics import MetricsLog
from homeostat.report.trackers import Tracker, kept_id

SETTINGS = {"trainer": {"name": "ppo"}, "seed": 0}


def draw(folder: Path) -> None:
    (folder / "figures").mkdir(parents=True)
    imsave(folder / "figures" / "valence.png", np.zeros((2, 2, 3)))


class Remembers:
    """A tracker that keeps what it is told, and may fail at a step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.summary: Mapping[str, Any] | None = None
        self.fails_at = fails_at

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise RuntimeError("no route to host\nmore")
        self.rows.append((step, dict(figures)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary


def logged(
    folder: Path, tracker: Tracker | None, steps: Sequence[int], **metrics: float
) -> list[str]:
    """Some steps of a run in ``folder``; returns what was said."""
    said: list[str] = []
    log = MetricsLog(folder, tracker, said.append)
    for step in steps:
        log.step(step, {"reward/total": float(step)} | metrics, [], {"time/load_s": 0.5})
    log.close()
    return said


def test_a_resumed_run_tells_its_tracker_everything_again(tmp_path: Path) -> None:
    logged(tmp_path, Remembers(), [1, 2], **{"optim/grad_norm": float("nan")})
    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    tracker = Remembers()
    assert logged(tmp_path, tracker, [3]) == []
    timed = {"time/load_s": 0.5}
    assert tracker.rows == [
        (1, {"reward/total": 1.0} | timed),  # what is missing is not told
        (2, {"reward/total": 2.0} | timed),
        (3, {"reward/total": 3.0} | timed),
    ]
    assert tracker.summary == {"status": "finished"}


def test_a_tracker_that_fails_costs_the_run_nothing(tmp_path: Path) -> None:
    tracker = Remembers(fails_at=2)
    said = logged(tmp_path, tracker, [1, 2, 3])
    assert [step for step, _ in tracker.rows] == [1]
    assert tracker.summary is None, "it is left behind"
    (line,) = said
    assert line.startswith("the tracker has failed (RuntimeError: no route to host); the run goes")
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("name", options()["tracker"])
def test_every_option_makes_a_tracker(name: str, tmp_path: Path) -> None:
    if name in ("trackio", "tensorboard"):
        pytest.importorskip(name)
    config = config_part(f"tracker={name}")
    assert config.name == name
    if name != "trackio":  # which keeps its runs in a folder of its own: below
        tracker = build(config, Tracker, folder=tmp_path, settings=SETTINGS)
        tracker.finish({"steps": 0})


def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("trackio", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
        says = rf"tracker={name} needs {name}: pip install 'homeostat\[{name}\]'"
        with pytest.raises(HomeostatError, match=says):
            build(config_part(f"tracker={name}"), Tracker, folder=tmp_path, settings=SETTINGS)


# --- what earlier run folders say ---------------------------------------------------------------


def of_before(**wandb: Any) -> dict[str, Any]:
    """The tracker of a run folder that was written when wandb was the only one."""
    config = OmegaConf.to_container(compose_run())
    assert isinstance(config, dict)
    del config["tracker"]
    return upgraded({**config, "wandb": wandb})["tracker"]


def test_a_run_of_before_has_the_tracker_that_it_had() -> None:
    tracker = of_before(mode="offline", project="mine", name="a")
    known = (tracker["name"], tracker["mode"], tracker["project"], tracker["run_name"])
    assert known == ("wandb", "offline", "mine", "a")
    assert not tracker["adapter"]
    none = of_before(mode="disabled", project="mine", name=None)
    assert none == {"_target_": "homeostat.report.trackers.NoTracker", "name": "none"}


def test_who_types_the_old_key_is_told_the_new_one() -> None:
    with pytest.raises(HomeostatError, match=r"^wandb\.mode=online: .* tracker\.mode=online"):
        compose_run("wandb.mode=online")


def test_the_id_of_an_earlier_run_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "id.txt").write_text("abc123\n")
    assert kept_id(tmp_path) == "abc123"
    other = tmp_path / "other"
    other.mkdir()
    assert kept_id(other) == kept_id(other) != "abc123"


# --- TensorBoard and trackio --------------------------------------------------------------------


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    draw(tmp_path)
    metric = {"diff": 0.25, "before": 0.0, "after": 0.25}
    summary = {"status": "finished", "steps": 3, "eval": {"valence": metric}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    config = config_part("tracker=tensorboard")
    for steps in ((1, 2), (3,)):
        tracker = build(config, Tracker, folder=tmp_path, settings=SETTINGS)
        assert logged(tmp_path, tracker, steps) == []
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    totals = [(event.step, event.value) for event in found.Scalars("reward/total")]
    assert totals == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [event.value for event in found.Scalars("eval/valence")] == [0.25]
    assert found.Tags()["images"] == ["valence"]


TRACKIO = """
import sys
from pathlib import Path
from test_trackers import SETTINGS, logged
from homeostat.config.register import build, config_part
from homeostat.report.trackers import Tracker
folder, steps = Path(sys.argv[1]), map(int, sys.argv[2:])
tracker = build(config_part("tracker=trackio"), Tracker, folder=folder, settings=SETTINGS)
assert logged(folder, tracker, list(steps)) == []
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("homeostat")
rows = SQLiteStorage.get_logs("homeostat", run)
print([(row["step"], row["reward/total"]) for row in rows])
"""


def test_trackio_has_one_run_with_every_step_once_and_prints_nothing(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    (tmp_path / "run").mkdir()
    for steps in ("1", "2"), ("3",):  # a process each, as for a run that is resumed
        done = subprocess.run(
            [sys.executable, "-c", TRACKIO, str(tmp_path / "run"), *steps],
            env=os.environ
            | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "[(1, 1.0), (2, 2.0), (3, 3.0)]\n"


# --- wandb --------------------------------------------------------------------------------------


def records_in(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, which is a LevelDB log behind a head of seven bytes."""
    block, head, place, record = 32_768, struct.Struct("<IHB"), 7, b""
    while place + head.size <= len(log):
        if (left := block - place % block) < head.size:  # a record never begins so near the end
            place += left
            continue
        _, length, kind = head.unpack_from(log, place)
        record += log[place + head.size : place + head.size + length]
        place += head.size + length
        if kind in (1, 4):  # whole, or the last piece of one
            yield record
            record = b""


def history(folder: Path) -> list[tuple[str, int, dict[str, str]]]:
    """Id, step and figures of every row in the mirrors of a folder, in the order of their time."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run_id = ""
        for data in records_in(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                run_id = record.run.run_id
                assert (record.run.run_group, record.run.job_type) == ("sweep", "ppo")
            if record.WhichOneof("record_type") == "history":
                row = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
                found.append((run_id, record.history.step.num, row))
    return found


def files_below(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_wandb_has_one_run_with_every_step_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes of one run folder: one id, steps without a gap, grouped by their sweep."""
    secret = "canary" + "0" * 34
    for name in ("WANDB_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    folder = tmp_path / "sweep" / "0"
    (tmp_path / "sweep" / "jobs").mkdir(parents=True)
    draw(folder)
    (folder / "evals").mkdir()
    turns = [{"role": "user", "text": "Why?"}, {"role": "assistant", "text": "Because."}]
    episode = {"arm": "base", "bot": "curious", "seed": 1, "turns": turns, "metrics": {}}
    (folder / "evals" / "homeostasis.jsonl").write_text(json.dumps(episode) + "\n")
    (folder / "adapters").mkdir()
    (folder / "adapters" / "adapter_config.json").write_text("{}")
    config = wandb_config(tags=["a"], notes="why", adapter=True)
    for steps in ((1, 2), (3,)):
        tracker = build(config, Tracker, folder=folder, settings=SETTINGS)
        assert logged(folder, tracker, steps) == []
        time.sleep(1.1)  # the name of a mirror's folder is a second
    found = history(folder)
    totals = [(step, row["reward/total"]) for _, step, row in found if "reward/total" in row]
    assert totals == [(1, "1"), (2, "2"), (3, "3")]
    assert {run_id for run_id, _, _ in found} == {kept_id(folder)}
    media = {key.partition(".")[0] for _, _, row in found for key in row}
    assert {"episodes", "valence"} <= media
    assert len(list(folder.glob("wandb/offline-run-*/files/media/table/*.json"))) == 1
    assert not [data for data in files_below(folder) if secret.encode() in data]


def test_a_setting_of_the_environment_that_wandb_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("1 validation error for Settings\nmode\n  Input should be 'online'\n more")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(HomeostatError, match=r"did not start .*Input should be 'online'\)") as said:
        build(wandb_config(), Tracker, folder=tmp_path, settings=SETTINGS)
    assert "\n" not in str(said.value)


def test_no_tracker_leaves_no_file(tmp_path: Path) -> None:
    logged(tmp_path, None, [1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "timing.jsonl",
        "episodes.jsonl",
    }
