"""The commands of README and docs/, as somebody would type them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("homeostat", "python", "pip", "just", "ray", "lm_eval", "hf", "wandb", "inspect")
# What cannot run here, and the words of which one has to stand beside such a command.
ELSEWHERE = re.compile(
    r"model=(qwen|gemma)|scale=gpu12|submitit_slurm|init\.address|bot\.source=endpoint|"
    r"device=cuda|--num-gpus|gpus?_per_node|\bhf upload\b|wandb sync"
)
MARKS = ("network", "GPU", "server", "cluster", "Slurm", "endpoint", "card")
CODE = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: Name of the file.
        line: As it is typed, without a comment behind it.
        around: The line with its comment and the lines near it.
    """

    page: str
    line: str
    around: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def commands() -> list[Command]:
    """Every command of every page, once a page."""
    return [command for page in PAGES for command in dict.fromkeys(_of_page(page))]


def _of_page(page: Path) -> Iterator[Command]:
    text = re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))
    lines = text.splitlines()
    fenced = {line for block in CODE.findall(text) for line in block.splitlines()}
    for number, line in enumerate(lines):
        around = "\n".join(lines[max(0, number - 6) : number + 7])
        found = [line] if line.startswith("    ") or line in fenced else []
        for typed in [*found, *re.findall(r"`([^`]+)`", line)]:
            for part in re.split(r" && |; ", typed.split("  #")[0].split(" # ")[0].strip()):
                bare = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", part)
                if bare.split(" ")[0] in PROGRAMS and " " in bare and "…" not in bare:
                    yield Command(page.name, bare.strip(), around)
