"""The pages as a person uses them, in a real headless browser; what is embedded stays text."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from homeostat.report.compare_text import as_html
from homeostat.report.episodes import TRAINED, USERS, as_json, browser_data, script, spread

HOSTILE = "<script>window.hacked = 1</script></script><!-- \u202eevil\u2028\x1b[31m"
SHOWN = "<script>window.hacked = 1</script></script><!-- <U+202E>evil"
AFFECT = {"sentiment": -0.5, "boredom": 0.25}


def episode(seed: int, said: str, arm: str = "", bot: str = "bored", **more: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "text": "Why?", "move": "move_claim", "affect": AFFECT},
        {"role": "assistant", "text": said, "signals": {"entropy": 1.5, "sentiment": 0.1}},
    ]
    turns[0]["perceived"] = {"sentiment": 0.75, "boredom": None}
    arms = {"arm": arm, "metrics": {"valence": -1.25}} if arm else {"valence": [-2.0, -1.0]}
    return {"seed": seed, "bot": bot, "turns": turns} | arms | more


def leave(folder: Path, held_out: list[Any], training: list[Any]) -> Path:
    (folder / "evals").mkdir(parents=True)
    for name, rows in (("evals/homeostasis.jsonl", held_out), ("episodes.jsonl", training)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_users_have_every_arm_and_training_its_updates(tmp_path: Path) -> None:
    held_out = [episode(1, "a", "base"), episode(1, "b", "trained"), episode(2, "c", "base")]
    data = browser_data(leave(tmp_path, held_out, [episode(9, "d", step=1, sample=0)]))
    assert data is not None
    assert data["all"] == {"users": 2, "training": 1}
    first, second = data["users"]
    assert (set(first["arms"]), set(second["arms"])) == ({"base", "trained"}, {"base"})
    user, reply = first["arms"]["base"]["turns"]
    assert (user["affect"], user["perceived"]["boredom"]) == (AFFECT, None)
    assert reply["signals"] == {"entropy": 1.5}, "affects stand beside the user's words"
    assert first["arms"]["base"]["valence"] == -1.25
    assert data["training"][0]["valence"] == -1.5, "the mean over its replies"


def test_completions_of_a_run_that_steers_are_no_episodes(tmp_path: Path) -> None:
    completion = {"step": 1, "stage": "steered", "prompt": "Why?", "text": "Because."}
    assert browser_data(leave(tmp_path, [], [completion])) is None


def test_of_many_rows_some_are_taken_evenly() -> None:
    assert spread(list(range(5)), 5) == [0, 1, 2, 3, 4]
    assert spread(list(range(101)), 3) == [0, 50, 100]


def test_embedded_data_cannot_end_its_script() -> None:
    written = as_json({"text": HOSTILE})
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {"text": HOSTILE}


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Any]]:
    """Open a file in headless Chromium; the driver, which is closed in the end."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium and chromedriver are not on the path.")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    quiet += " disable-background-networking disable-component-update window-size=1200,1400"
    for flag in [*quiet.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(chromedriver)
    driver = webdriver.Chrome(options=options, service=service)

    def open_(path: Path) -> Any:
        driver.get(path.as_uri())
        return driver

    yield open_
    driver.quit()


def browser_page(folder: Path) -> Path:
    """The browser alone, with the policy of the report."""
    text, source = script("browser.js")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {source}"
    page = folder / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><section id="browser" tabindex="0"></section>'
        f'<script type="application/json" id="episode-data">{as_json(browser_data(folder))}'
        f"</script><script>{text}</script>",
        encoding="utf-8",
    )
    return page


def choose(driver: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", f"browser-{name}")).select_by_value(value)


def texts(driver: Any, selector: str) -> list[str]:
    return [one.text for one in driver.find_elements("css selector", selector)]


def where(driver: Any) -> str:
    return str(driver.find_element("class name", "where").text)


def test_the_browser_filters_steps_and_searches(
    open_page: Callable[[Path], Any], tmp_path: Path
) -> None:
    held_out = [
        episode(seed, f"reply of {arm} {seed}", arm, bot)
        for seed, bot in enumerate(("bored", "bored", "curious"))
        for arm in ("base", "trained")
    ]
    training = [
        episode(seed, f"update {step}", step=step, sample=0)
        for step, seed in enumerate((7, 8, 9), 1)
    ]
    driver = open_page(browser_page(leave(tmp_path, held_out, training)))
    assert where(driver) == "1 of 3: bored, seed 0"
    assert texts(driver, ".assistant .text") == ["reply of base 0", "reply of trained 0"]
    assert texts(driver, "h4") == ["base valence -1.25", "trained valence -1.25"]
    said = driver.find_element("css selector", ".feelings .hidden").get_attribute("textContent")
    assert said == "sentiment: true -0.50, read 0.75"
    driver.find_element("css selector", "[aria-label='next episode']").click()
    assert where(driver) == "2 of 3: bored, seed 1"
    root = driver.find_element("id", "browser")
    root.send_keys("\ue010")  # End
    assert where(driver) == "3 of 3: curious, seed 2"
    root.send_keys("\ue012")  # left
    assert where(driver) == "2 of 3: bored, seed 1"
    choose(driver, "bot", "curious")
    assert where(driver) == "1 of 1: curious, seed 2"
    choose(driver, "right", "base")
    assert texts(driver, ".assistant .text") == ["reply of base 2"], "one arm stands alone"
    choose(driver, "bot", "")
    driver.find_element("id", "browser-text").send_keys("TRAINED 1")
    assert where(driver) == "1 of 1: bored, seed 1", "any arm of a user"
    driver.find_element("id", "browser-text").clear()
    driver.find_element("id", "browser-text").send_keys("nobody says this")
    assert where(driver) == "no episode fits"
    assert driver.get_log("browser") == []


def test_training_goes_by_update(open_page: Callable[[Path], Any], tmp_path: Path) -> None:
    training = [
        episode(step, f"update {step}", step=step, sample=sample)
        for step in (1, 2, 3)
        for sample in (0, 1)
    ]
    driver = open_page(browser_page(leave(tmp_path, [], training)))
    assert where(driver) == "1 of 6: bored, update 1, sample 0"
    update = driver.find_element("id", "browser-update")
    assert (update.get_attribute("min"), update.get_attribute("max")) == ("1", "3")
    update.send_keys("\ue014")  # right
    assert where(driver) == "3 of 6: bored, update 2, sample 0"
    assert texts(driver, ".assistant .text") == ["update 2"]
    assert not driver.find_element("class name", "compared").is_displayed()
    assert driver.get_log("browser") == []


def test_hostile_text_is_text(open_page: Callable[[Path], Any], tmp_path: Path) -> None:
    held_out = [episode(1, HOSTILE, HOSTILE, HOSTILE)]
    driver = open_page(browser_page(leave(tmp_path, held_out, [])))
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return document.scripts.length") == 2
    (shown,) = texts(driver, ".assistant .text")
    assert shown.startswith(SHOWN)
    assert "\x1b" not in driver.page_source
    assert driver.get_log("browser") == []


def test_twenty_thousand_episodes_open(
    open_page: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "and so on, with some more words of an ordinary reply, " * 4
    held_out = [episode(seed, words, arm) for seed in range(2500) for arm in ("base", "trained")]
    training = [episode(n, words, step=1 + n // 150, sample=n % 150) for n in range(15_000)]
    page = browser_page(leave(tmp_path, held_out, training))
    began = time.perf_counter()
    driver = open_page(page)
    sampled = f"({USERS} of 2,500 are in this page)"
    assert where(driver) == f"1 of {USERS} {sampled}: bored, seed 0"
    with capsys.disabled():
        opened = time.perf_counter() - began
        print(f"\n20,000 episodes: {page.stat().st_size / 1e6:.1f} MB, opened in {opened:.1f} s")
    choose(driver, "kind", "training")
    assert where(driver).startswith(f"1 of {TRAINED} ({TRAINED} of 15,000 are in this page)")
    assert driver.get_log("browser") == []


def test_a_comparison_is_sorted_and_its_arms_are_hidden(
    open_page: Callable[[Path], Any], tmp_path: Path
) -> None:
    def arm(name: str, level: float | None) -> dict[str, Any]:
        known = None if level is None else {"mean": level, "ci95": [0.0, 1.0]}
        cell = {"level": known, "difference": None, "note": "none"}
        return {"name": name, "seeds": [1], "runs": 1, "cells": {"answer": cell}}

    column = {"name": "answer", "metric": "sycophancy", "good": -1, "caveat": None}
    arms = [arm("b", 0.5), arm(HOSTILE, None), arm("a", -1.5), arm("c", 10.0)]
    comparison = {
        **{"model": HOSTILE, "baseline": "base", "problems": []},
        **{"columns": [column | {"mode": "logprob"}], "arms": arms},
    }
    page = tmp_path / "comparison.html"
    page.write_text(as_html(comparison, None), encoding="utf-8")
    driver = open_page(page)

    def shown() -> list[str]:
        rows = driver.find_elements("css selector", "table.sortable tr[data-arm]")
        return [row.find_element("tag name", "b").text for row in rows if row.is_displayed()]

    arm_head, _, level_head = driver.find_elements("css selector", "table.sortable th button")[:3]
    level_head.click()
    assert [name[:1] for name in shown()] == ["a", "b", "c", "<"], "missing goes last"
    level_head.send_keys("\ue007")  # Enter
    assert [name[:1] for name in shown()] == ["c", "b", "a", "<"]
    head = driver.find_element("css selector", "th[aria-sort=descending]")
    assert head.text.startswith("answer")
    arm_head.click()
    assert [name[:1] for name in shown()] == ["<", "a", "b", "c"]
    boxes = driver.find_elements("css selector", "#arms input")
    assert len(boxes) == 4
    boxes[0].click()
    assert "b" not in shown()
    boxes[0].click()
    assert "b" in shown()
    assert driver.execute_script("return window.hacked") is None
    assert driver.get_log("browser") == []


def test_the_pages_let_no_other_script_run() -> None:
    for name, of in (("report.html.j2", "browser_source"), ("comparison.html.j2", "tables_source")):
        text = resources.files("homeostat.report").joinpath(name).read_text(encoding="utf-8")
        assert f"script-src {{{{ {of} }}}}" in text
        assert "default-src 'none'" in text
