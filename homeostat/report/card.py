"""The model card beside what a run has trained: README.md, as model hubs read it.

Its figures are those of the run's ``summary.json``. What it names comes from a config and may be
anybody's text: in Markdown it is inert, in the front matter it is YAML that a library writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from homeostat.config.resume import read_config
from homeostat.config.signals import AFFECTS
from homeostat.files import read_json, write_text
from homeostat.report.plain import in_markdown, interval, number
from homeostat.report.sentences import headline, suite_sentence

# The embedded model goes by its name here, and on the hub by this id.
HUB = {"smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# Of the models that have a preset; of others the card does not know it.
LICENCES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "Qwen/Qwen2.5-0.5B-Instruct": "apache-2.0",
    "Qwen/Qwen3-0.6B": "apache-2.0",
    "google/gemma-3-1b-it": "gemma",
    "google/gemma-3-4b-it": "gemma",
}
# Whose words the users say, by the class that makes them.
OWN_WORDS = "The users' words are homeostat's own, under Apache-2.0."
WORDS = {
    "ScriptedBots": OWN_WORDS,
    "MixedBots": OWN_WORDS,
    "FileBots": "The users' first words come from a file, the others are homeostat's own.",
    "ModelBots": "The users' words are a language model's.",
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
KINDS = {"adapter": "A LoRA for", "merged": "A copy, with what was trained merged in, of"}
Json = Mapping[str, Any]


def write_card(run: Path, folder: Path, kind: str = "adapter") -> None:
    """Write README.md into a folder of weights.

    Args:
        run: The run folder, whose config and summary the card tells.
        folder: Of the weights.
        kind: ``adapter``, or ``merged`` for a plain model.
    """
    config, summary = read_config(run), read_json(run / "summary.json")
    lines = ["---", _front_matter(config, kind).rstrip(), "---", "", *_body(config, summary, kind)]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def base_of(config: Json) -> str | None:
    """Hub id of the base; None for a model that has none."""
    path = str(config["model"].get("path", ""))
    known = HUB.get(config["model"]["name"])
    return known or (path if HUB_ID.fullmatch(path) and not Path(path).exists() else None)


def _front_matter(config: Json, kind: str) -> str:
    base = base_of(config)
    front: dict[str, Any] = {"pipeline_tag": "text-generation"}
    front["library_name"] = "peft" if kind == "adapter" else "transformers"
    if base is not None:
        front["base_model"] = base
        front["base_model_relation"] = "adapter" if kind == "adapter" else "finetune"
    if base in LICENCES:
        front["license"] = LICENCES[base]
    front["tags"] = ["homeostat", str(config["trainer"]["name"])]
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))


def _body(config: Json, summary: Json, kind: str) -> Iterator[str]:
    name, base = in_markdown(config["model"]["name"]), base_of(config)
    yield f"# {name}, trained by homeostat"
    yield ""
    called = in_markdown(base or config["model"]["name"])
    yield f"{KINDS[kind]} {called}. {_training(config, summary)}"
    yield ""
    yield in_markdown(f"{headline(dict(summary))} {suite_sentence(summary.get('suite') or {})}")
    yield from _table("Held-out episodes", summary.get("eval") or {})
    yield from _evaluations(summary.get("suite") or {})
    yield from _limits(summary)
    yield from _loading(base, kind)


def _training(config: Json, summary: Json) -> str:
    """What it was trained by and on."""
    trainer, seed = config["trainer"]["name"], config["seed"]
    if config.get("persona"):
        on = f"its own completions, steered towards the persona {config['persona']['name']}"
    else:
        on = f"talks with simulated users (bot {config['bot']['name']}), paid for "
        on += _paid(config, summary)
    said = WORDS.get(str(config["bot"]["_target_"]).rpartition(".")[2], "")
    return in_markdown(
        f"Trained by {trainer}, seed {seed}, on {on}; no human labels. {said} The whole config is "
        "config.yaml of the run folder."
    )


def _paid(config: Json, summary: Json) -> str:
    """What was rewarded, by name; an affect that could not be read was not."""
    points, read = config["reward"]["set_points"], summary.get("rewarded_affects") or ()
    asked = [name for name, point in points.items() if point["weight"] > 0]
    kept = [name for name in asked if name not in AFFECTS or name in read]
    near = f"keeping {', '.join(kept)} near set points" if kept else ""
    return " and ".join([*filter(None, [near]), *config["reward"]["terms"]])


def _table(title: str, figures: Json) -> Iterator[str]:
    """A row per figure that was measured before and after."""
    rows = {name: figure for name, figure in figures.items() if figure.get("diff") is not None}
    if rows:
        yield from ("", f"## {title}", "")
        yield from (
            "| figure | base | trained | difference | 95% interval | n |",
            "| --- " * 6 + "|",
        )
    for name, figure in rows.items():
        levels = f"{number(figure['before'])} | {number(figure['after'])}"
        change = f"{number(figure['diff'], sign=True)} | {interval(figure['ci95'])}"
        yield f"| {in_markdown(name)} | {levels} | {change} | {figure['n']} |"


def _evaluations(suite: Json) -> Iterator[str]:
    claims = {name: found["metrics"][found["claim"]] for name, found in suite.items()}
    yield from _table("Evaluations", claims)
    caveats = {name: found["caveat"] for name, found in suite.items() if found["caveat"]}
    if caveats:
        yield ""
    for name, caveat in caveats.items():
        yield f"- {in_markdown(name)}: {in_markdown(caveat)}"


def _limits(summary: Json) -> Iterator[str]:
    yield from ("", "## Limits", "")
    if summary["status"] != "finished":
        yield f"- The run is not finished: {in_markdown(summary['status'])}."
    yield (
        "- One run with one seed. Intervals are over held-out episodes and items and say nothing "
        "about seeds."
    )
    yield (
        "- Users are simulated. That a reward was earned does not show that the model helps "
        "anybody, and nothing was compared with human judgement."
    )
    yield "- What the base model's own card says of its limits and uses holds here, too."


def _loading(base: str | None, kind: str) -> Iterator[str]:
    yield from ("", "## Loading it", "", "```python")
    yield from ("from transformers import AutoModelForCausalLM", "")
    if kind == "merged":
        yield 'model = AutoModelForCausalLM.from_pretrained("<this folder>")'
    else:
        yield "from peft import PeftModel"
        yield f'base = AutoModelForCausalLM.from_pretrained("{base or "<the base model>"}")'
        yield 'model = PeftModel.from_pretrained(base, "<this folder>")'
    yield "```"
