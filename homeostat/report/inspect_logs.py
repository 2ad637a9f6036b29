"""Evaluations of a run as logs of Inspect: one per evaluation and arm, an item a sample.

Nothing is computed here: figures are those of ``evals/`` and ``summary.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from homeostat.config.rows import kept_rows
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.evals.evaluation import Evaluation, chosen_evaluations
from homeostat.files import read_json

Row = Mapping[str, Any]
MISSING = "export_as=inspect needs Inspect: pip install 'homeostat[inspect]'."
SCORER = "homeostat"
EPISODES = ("homeostasis", "cool", "prompted")
STATUS = {"finished": "success", "interrupted": "cancelled"}


def write_logs(run: Path, config: RunConfig, out: Path) -> None:
    """Write the logs of a run folder.

    Args:
        run: The run folder.
        config: Of that run.
        out: A folder that is there.

    Raises:
        HomeostatError: Inspect is not installed, or nothing was evaluated.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise HomeostatError(MISSING) from error
    summary = read_json(run / "summary.json")
    for name, arm, samples, figures in _measured(run, config, summary):
        log = _log(_spec(config, run, name, arm, samples), samples, figures, summary["status"])
        write_eval_log(log, str(out / f"{name}_{arm}.eval"))
    if not any(out.iterdir()):
        raise HomeostatError(
            f"export={run}: nothing was evaluated in it; give the folder of a run with eval.suite "
            "or held-out episodes."
        )


def _measured(
    run: Path, config: RunConfig, summary: Row
) -> Iterator[tuple[str, str, list[Any], dict[str, float]]]:
    """Name, arm, samples and figures of everything that the run has evaluated."""
    for name, record in chosen_evaluations(config.eval).items():
        items = {str(item["id"]): item for item in record.items(config.eval)}
        found = (summary.get("suite") or {}).get(name) or {}
        for arm, rows in _by_arm(run / "evals" / f"{name}.jsonl").items():
            samples = [_item_sample(row, items.get(str(row["item"]), {}), record) for row in rows]
            yield name, arm, samples, _levels(found.get("metrics"), found.get(arm), arm)
    for file in EPISODES:
        for arm, rows in _by_arm(run / "evals" / f"{file}.jsonl").items():
            samples = [_episode_sample(row) for row in rows if "turns" in row]
            if samples:
                yield "homeostasis", arm, samples, _levels(summary["eval"], summary.get(arm), arm)


def _by_arm(path: Path) -> dict[str, list[Row]]:
    arms: dict[str, list[Row]] = {}
    for row in kept_rows(path) if path.is_file() else ():
        arms.setdefault(row["arm"], []).append(row)
    return arms


def _levels(trained: Row | None, own: Row | None, arm: str) -> dict[str, float]:
    """Every figure of an arm that is known.

    Args:
        trained: Figures of the trained model beside the base.
        own: Those of the arm beside the base, if it is another.
        arm: Its name.
    """
    side = "before" if arm == "base" else "after"
    metrics = (trained if arm in ("base", "trained") else own) or {}
    return {name: found[side] for name, found in metrics.items() if found[side] is not None}


def _score(row: Row) -> dict[str, Any]:
    from inspect_ai.scorer import Score

    known = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "seed"}
    return {SCORER: Score(value=known)}


def _item_sample(row: Row, item: Row, record: Evaluation) -> Any:
    from inspect_ai.log import EvalSample

    sides = record.sides(dict(item)) if record.sides is not None and item else None
    asked = sides.question if sides else "\n".join(v for v in item.values() if isinstance(v, str))
    return EvalSample(
        id=str(row["item"]),
        epoch=1,
        input=asked,
        choices=[sides.right, *sides.others] if sides else None,
        target=sides.right if sides else "",
        scores=_score(row),
        metadata=dict(item),
    )


def _episode_sample(row: Row) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds: dict[str, Any] = {"user": ChatMessageUser, "assistant": ChatMessageAssistant}
    said = [kinds.get(t["role"], ChatMessageSystem)(content=t["text"]) for t in row["turns"]]
    first = next((i for i, turn in enumerate(row["turns"]) if turn["role"] == "assistant"), None)
    return EvalSample(
        id=row["seed"],
        epoch=1,
        input=said[:first],
        target="",
        messages=said,
        scores=_score(row.get("metrics") or {}),
        metadata={"bot": row.get("bot")},
    )


def _spec(config: RunConfig, run: Path, name: str, arm: str, samples: Sequence[Any]) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalSpec

    ended = datetime.fromtimestamp((run / "summary.json").stat().st_mtime, UTC)
    return EvalSpec(
        created=ended.isoformat(timespec="seconds"),
        task=f"homeostat/{name}",
        task_args={"arm": arm, "seed": config.seed, "trainer": config.trainer.name},
        dataset=EvalDataset(
            name=name, samples=len(samples), sample_ids=[sample.id for sample in samples]
        ),
        model=f"homeostat/{config.model.name}",
        config=EvalConfig(),
        metadata={"run": run.name},
    )


def _log(spec: Any, samples: list[Any], figures: Mapping[str, float], status: str) -> Any:
    from inspect_ai.log import EvalLog, EvalMetric, EvalResults, EvalScore

    metrics = {name: EvalMetric(name=name, value=value) for name, value in figures.items()}
    score = EvalScore(name=SCORER, scorer=SCORER, metrics=metrics)
    done = len(samples)
    results = EvalResults(total_samples=done, completed_samples=done, scores=[score])
    return EvalLog(status=STATUS.get(status, "error"), eval=spec, results=results, samples=samples)
