"""What comes from somebody else is data: hostile runs, adapters, models, files and names.

Whatever is in them, nothing is imported or unpickled, nothing is written outside, what is refused
is said in one sentence, and no text reaches a terminal or a page as anything but text.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configs import tiny_config
from matplotlib import pyplot as plt
from rich.console import Console as RichConsole
from safetensors.torch import save_file

from homeostat.cli import _complain, _look_at, _start, explain
from homeostat.config.foreign import foreign_targets
from homeostat.config.model import PretrainedModelConfig
from homeostat.config.register import PACKAGE
from homeostat.config.resume import save_config
from homeostat.config.run import RunConfig
from homeostat.config.sweep import note_job
from homeostat.errors import HomeostatError
from homeostat.evals import answer
from homeostat.evals.items import read_items
from homeostat.models.adapter_files import load_adapter
from homeostat.models.adapters import Policy
from homeostat.models.load import load_pretrained
from homeostat.models.template import chat_template
from homeostat.models.tiny import load_tiny
from homeostat.report import compare
from homeostat.report.console import Console
from homeostat.report.figures import STYLE
from homeostat.runs.checkpoint import read_state

TINY = ("model=tiny_random", "scale=smoke")
EVALUATIONS = {"answer": answer.EVALUATION}
SECRETS = ("WANDB_API_KEY", "OPENAI_API_KEY", "HF_TOKEN")
SECRET = "canary0secret0canary0secret0canary0secret"
NAME = "\x1b]0;x\x07\x1b[31m\u202egnp\u2066 [red]x[/red] \x9b\u2028 <script>x</script> $x_{ a|b `c`"
RAW = re.compile("[\x1b\x07\x9b\u202e\u2066\u2028]")
Spoil = Callable[[Path], Any]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A place of the user's that nothing may touch, and that says if canary code has run."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "kept").write_text("kept")
    return place


@pytest.fixture
def folder(
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A finished run; afterwards it is checked that no canary has run and nothing lies outside."""
    code = f"open({str(outside / 'imported')!r}, 'w')\ndef f(*_): return []\n"
    (tmp_path / "canary_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in SECRETS:
        monkeypatch.setenv(name, SECRET)
    run = tmp_path / "runs" / "run"
    write_run(run, composed(*TINY))
    yield run
    assert "canary_module" not in sys.modules
    assert sorted(path.name for path in outside.iterdir()) == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def write_run(run: Path, config: RunConfig, overrides: tuple[str, ...] = TINY) -> None:
    (run / "evals").mkdir(parents=True)
    save_config(config, overrides, run)
    summary = {
        **{"status": "finished", "trainer": "ppo", "learns": True, "model": "tiny_random"},
        **{"bot": "mixed", "seed": 0, "wall_s": 1.0, "eval": {}, "time_s": {"report": 1.0}},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/valence": -1.0}\n')
    both = [
        {"arm": side, "item": f"i{n}", "sycophancy": n + offset, "right": 1.0, "copying": 0.0}
        for side, offset in (("base", 0.0), ("trained", 0.25))
        for n in range(4)
    ]
    (run / "evals" / "answer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))


def value(path: str, what: Any) -> Spoil:
    """Write a value into the kept config."""

    def spoil(run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        *above, last = path.split("/")
        node = config
        for key in above:
            node = node.setdefault(key, {})
        node[last] = what
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return spoil


def text(file: str, what: str) -> Spoil:
    return lambda run: (run / file).write_text(what)


def override(typed: str) -> Spoil:
    return text("overrides.yaml", yaml.safe_dump([typed]))


def link(name: str, to: str) -> Spoil:
    def spoil(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(run / to)

    return spoil


def wandb_settings(run: Path) -> None:
    (run / "wandb").mkdir()
    (run / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
LAUNDERED = {"_target_": "homeostat.integrations.trl.term", "function": "canary_module.f"}
REFUSED: dict[str, tuple[Spoil, str]] = {
    "code": (value("model/_target_", "canary_module.f"), r"canary_module\.f \(model\)"),
    "term": (
        value("reward/terms", {"x": {"_target_": "canary_module.f"}}),
        r"canary_module\.f \(reward\.terms\.x\)",
    ),
    "function of a term with a dot": (
        value("reward/terms", {"x.y": LAUNDERED}),
        r"canary_module\.f \(reward\.terms\.x\.y\.function\)",
    ),
    "callback": (value("hydra/callbacks/x", {"_target_": "canary_module.f"}), "sets hydra"),
    "environment": (value("wandb/name", "${oc.env:WANDB_API_KEY}"), r"wandb\.name=.*looked up"),
    "decoding": (value("wandb/name", "${oc.decode:'1'}"), r"wandb\.name=.*looked up"),
    "resolver": (value("persona", ["${mine:1}"]), r"persona\.0=.*looked up"),
    "flag": (override("--config-dir=/x"), "holds --config-dir=/x, which tells Hydra"),
    "short flag": (override("-cd"), "holds -cd, which tells Hydra"),
    "kept callback": (
        override("+hydra.callbacks.x={_target_: canary_module.f}"),
        r"holds \+hydra\.callbacks\.x.*tells Hydra",
    ),
    "launcher": (override("hydra/launcher=joblib"), "holds hydra/launcher=joblib"),
    "kept target": (
        override("'+reward.terms.x={_target_: canary_module.f}'"),
        r"overrides\.yaml names .*canary_module\.f",
    ),
    "kept model": (override("model._target_=canary_module.f"), r"names .*canary_module\.f"),
    "tag": (text("config.yaml", "a: !!python/object/apply:canary_module.f []\n"), "damaged"),
    "module": (text("config.yaml", "a: !!python/module:canary_module\n"), "damaged"),
    "laughs": (text("config.yaml", LAUGHS), "by aliases"),
    "depth": (text("config.yaml", "[" * 3000), "damaged"),
    "number": (text("config.yaml", "seed: " + "9" * 6000), "damaged"),
    "nothing": (text("config.yaml", "\0"), "damaged"),
    "controls": (value(NAME, {"_target_": NAME}), "neither imported"),
    "link to a folder": (link("figures", "../../outside"), r"figures in it is a link to .*outside"),
    "link to a file": (link("metrics.jsonl", "../../outside/kept"), r"metrics\.jsonl in it is a"),
    "link that leads nowhere": (link("warnings.log", "../../outside/new"), r"warnings\.log in it"),
    "pipe": (lambda run: os.mkfifo(run / "timing.jsonl"), "neither a file nor a folder"),
    "where wandb sends": (wandb_settings, "wandb/settings in it tells wandb where"),
}


@pytest.mark.parametrize("key", ["resume", "export"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_data_is_refused_in_a_sentence(
    name: str, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, says = REFUSED[name]
    spoil(folder)
    monkeypatch.setattr(sys, "argv", ["homeostat"])
    with pytest.raises(HomeostatError) as caught:
        _start([f"{key}={folder}"])
    said = explain(caught.value)
    assert re.search(says, said, re.DOTALL), said
    assert str(folder) in said
    assert SECRET not in said
    assert "This should not happen" not in said


@pytest.mark.parametrize("name", REFUSED)
def test_runs_are_looked_at_without_doing_what_they_say(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    REFUSED[name][0](folder)
    look_at_all(folder, capsys)


def look_at_all(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What list, show and compare say of a run, and the pages of the comparison."""
    for asked in (("list", str(run.parent)), ("show", str(run))):
        assert _look_at(*asked) in (0, 1)
    out, screen = run.parent.parent / "compared", io.StringIO()
    console = Console(RichConsole(file=screen, width=200))
    try:
        compare.compare_runs([run.parent], out, console, EVALUATIONS, samples=50)
        pages = [(out / f"comparison.{kind}").read_text() for kind in ("md", "html")]
    except HomeostatError as error:
        pages = []
        _complain(explain(error))
    captured = capsys.readouterr()
    said = "".join([captured.out, captured.err, screen.getvalue(), *pages])
    assert not RAW.search(said)
    # Of the two pages of a comparison HTML has a script of its own, which sorts its tables.
    assert [page.count("<script") for page in pages] in ([], [0, 1])
    assert SECRET not in said
    assert "should not happen" not in said
    return said


ODD: dict[str, Any] = {
    "number": 5,
    "text": NAME,
    "list": [],
    "nothing": None,
    "object": {},
    "not a number": float("nan"),
    "no end": 10**400,
}


@pytest.mark.parametrize("what", ODD)
def test_values_that_no_run_writes_end_in_a_sentence(
    what: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "draw_comparison", lambda *_: None)
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(x) for x in (folder / "evals" / "answer.jsonl").read_text().splitlines()]
    named = {"name": "tiny_random", "max_steps": 2}
    config = {"model": named, "trainer": named, "reward": {}, "eval": {}, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))  # a short one is read in no time
    for key in (None, *summary):
        spoilt = ODD[what] if key is None else summary | {key: ODD[what]}
        (folder / "summary.json").write_text(json.dumps(spoilt))
        look_at_all(folder, capsys)
    (folder / "summary.json").write_text(json.dumps(summary))
    for key in rows[0]:
        spoilt_rows = [json.dumps(row | {key: ODD[what]}) for row in rows]
        (folder / "evals" / "answer.jsonl").write_text("\n".join(spoilt_rows))
        look_at_all(folder, capsys)
    (folder / "evals" / "answer.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for key in config:
        value(key, ODD[what])(folder)
        look_at_all(folder, capsys)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_names_are_text_wherever_they_are_shown(
    folder: Path, composed: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.parent / "other"
    write_run(other, composed(*TINY, "trainer.lr=1e-3"), (*TINY, f"trainer.lr={NAME}"))
    summary = json.loads((other / "summary.json").read_text()) | {"status": f"failed: {NAME}"}
    (other / "summary.json").write_text(json.dumps(summary))
    note_job(folder.parent, 0, [NAME], NAME, other)
    said = look_at_all(folder, capsys)
    assert "&lt;script&gt;" in said
    assert "␛]0;x" in said
    assert _look_at("show", str(folder.parent)) == 0
    shown = capsys.readouterr().out
    assert not RAW.search(shown)
    assert "[red]" in shown


def test_a_dollar_in_a_figure_is_no_formula() -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.set_title("$x_{")
        figure.savefig(io.BytesIO())
        plt.close(figure)


def test_a_record_of_a_job_leads_to_nothing_that_is_written(
    folder: Path,
    outside: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "draw_comparison", lambda *_: None)
    for number, place in enumerate((str(outside), "../../../../..", "\0", "a" * 5000, "")):
        note_job(folder.parent, number, ["seed=0"], "running")
        path = folder.parent / "jobs" / f"{number}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"folder": place}))
        look_at_all(folder, capsys)
        assert _look_at("show", str(folder.parent)) in (0, 1)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("save", [torch.save, lambda bad, to: to.write_bytes(pickle.dumps(bad))])
def test_a_checkpoint_is_not_unpickled(save: Any, folder: Path, outside: Path) -> None:
    checkpoint = folder / "checkpoint" / "step_000001"
    checkpoint.mkdir(parents=True)
    save({"step": Canary(outside / "unpickled")}, checkpoint / "state.pt")
    with pytest.raises(HomeostatError, match="step_000001 is damaged"):
        read_state(checkpoint)


def test_an_adapter_is_read_from_safetensors_alone(
    folder: Path, outside: Path, make_policy: Callable[..., Policy]
) -> None:
    adapters = folder / "adapters"
    adapters.mkdir()
    torch.save({"x": Canary(outside / "unpickled")}, adapters / "adapter_model.bin")
    auto = {"auto_mapping": {"parent_library": "canary_module", "base_model_class": "f"}}
    there = {"base_model_name_or_path": str(outside), "peft_type": "canary_module.f"}
    (adapters / "adapter_config.json").write_text(json.dumps(auto | there))
    with pytest.raises(HomeostatError, match=r"adapter_model\.safetensors"):
        load_adapter(make_policy(), adapters)
    save_file({"x": torch.zeros(2)}, adapters / "adapter_model.safetensors")
    with pytest.raises(HomeostatError, match="does not fit this model"):
        load_adapter(make_policy(), adapters)


@pytest.fixture
def model(folder: Path) -> Path:
    """A tiny model's folder."""
    base = load_tiny(tiny_config(), torch.device("cpu"), torch.float32)
    place = folder.parent / "model"
    base.model.save_pretrained(place)
    base.tokenizer.save_pretrained(place)
    return place


def read(model: Path) -> Any:
    config = PretrainedModelConfig(name="theirs", path=str(model))
    return load_pretrained(config, torch.device("cpu"), torch.float32)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_brings_no_code(model: Path, outside: Path) -> None:
    (model / "canary_module.py").write_text(f"open({str(outside / 'imported')!r}, 'w')")
    named = {"AutoConfig": "canary_module.f", "AutoModelForCausalLM": "canary_module.f"}
    change(model / "config.json", auto_map=named, attn_implementation="canary/kernel")
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["canary_module.f", None]})
    assert read(model).model.config._attn_implementation == "sdpa"
    change(model / "config.json", vocab_size="many")
    with pytest.raises(HomeostatError, match="no model could be read"):
        read(model)
    change(model / "config.json", model_type="theirs")
    with pytest.raises(HomeostatError, match="code of its own"):
        read(model)


def test_weights_that_are_a_pickle_are_not_loaded(model: Path, outside: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"x": Canary(outside / "unpickled")}, model / "pytorch_model.bin")
    with pytest.raises(HomeostatError, match=r"a pickle \(pytorch_model\.bin\)"):
        read(model)
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.bin"}}')
    (model / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(HomeostatError, match="no model could be read"):
        read(model)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ' ~ '%s') }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('%s', 'w') }}",
        "{{ messages.__class__.__base__ }}{{ messages.append(messages) }}",
        "{% include '/etc/passwd' %}",
        "{% for a in range(10 ** 9) %}x{% endfor %}",
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_template_runs_in_a_sandbox(
    attack: str, outside: Path, make_policy: Callable[..., Policy]
) -> None:
    tokenizer = make_policy().tokenizer
    tokenizer.chat_template = attack.replace("%s", str(outside / "ran")) + tokenizer.chat_template
    with pytest.raises(HomeostatError, match="cannot be talked to"):
        chat_template(tokenizer, "theirs")


@pytest.mark.parametrize(
    "line",
    ["[" * 10**5, '{"a":' * 10**5, '{"a": ' + "9" * 5000 + "}", "\0", '{"a": "\\ud800"}', "[1]"],
)
def test_an_item_file_is_refused_by_its_line(line: str, folder: Path) -> None:
    path = folder.parent / "items.jsonl"
    path.write_text(line)
    with pytest.raises(HomeostatError, match=r"items\.jsonl, line 1"):
        read_items(str(path), None, {"a": str})


def test_where_a_secret_would_go_is_said() -> None:
    bot = {"api_key_env": "OPENAI_API_KEY", "url": "http://theirs/v1"}
    assert foreign_targets({"bot": bot}) == {
        "OPENAI_API_KEY": "bot.api_key_env, whose value would go to http://theirs/v1"
    }


def test_no_reader_of_ours_makes_objects() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "np.load"), path
            assert not re.match(r"(pickle|joblib|dill|cloudpickle|shelve|marshal)\.", called), path
            if called == "torch.load":
                assert ast.unparse(given["weights_only"]) == "True", path
            if "trust_remote_code" in given:
                assert ast.unparse(given["trust_remote_code"]) == "False", path


@pytest.mark.slow
def test_secrets_reach_no_file_and_no_line(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("homeostat")
    own = dict.fromkeys(SECRETS, SECRET) | {"HOMEOSTAT_CACHE": str(tmp_path / "cache")}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    asked = ("signals=[intrinsic]", "reward=intrinsic_only", "eval.suite=[]")
    less = ("eval.headroom_users=0", "tracker=wandb", f"hydra.run.dir={tmp_path / 'run'}")
    done = subprocess.run(
        [str(script), *TINY, *asked, *less],
        cwd=tmp_path,
        env={**os.environ, **own, **quiet},
        capture_output=True,
        check=True,
        timeout=240,
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"summary.json", "tracker.txt", "report.html"} <= {path.name for path in files}
    for written in (done.stdout, done.stderr, *(path.read_bytes() for path in files)):
        assert SECRET.encode() not in written
