"""Signals ask a run to stop; a second one, later, stops it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from homeostat.runs import interrupt
from homeostat.runs.interrupt import SIGNALS, Interrupt, Stopped, stop_on_signals


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_says_so(number: signal.Signals, capfd: Any) -> None:
    with Interrupt() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
    assert "Stopping at the next step" in capfd.readouterr().out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_later_signal_stops_at_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "SAME_REQUEST_S", 0.0)
    with Interrupt():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught:
            send(number)
    assert caught.type is KeyboardInterrupt


def test_a_signal_that_comes_twice_in_a_row_asks_once() -> None:
    """`timeout` signals its child, and then the whole group."""
    with Interrupt() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.requested


def test_check_leaves_the_block_only_once_it_has_been_asked_for() -> None:
    seen = []
    with Interrupt() as stop:
        stop.check()
        seen.append("before")
        send(signal.SIGTERM)
        stop.check()
        seen.append("after")
    assert seen == ["before"]
    assert stop.requested


def test_an_interrupt_swallows_no_error_but_its_own() -> None:
    with pytest.raises(ZeroDivisionError), Interrupt():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt) as caught, Interrupt():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Stopped)


def test_handlers_are_put_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupt():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    with pytest.raises(ZeroDivisionError), Interrupt():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_launcher_keeps_the_signals_that_it_has_taken() -> None:
    heard = []
    signal.signal(signal.SIGUSR1, lambda *_: heard.append("launcher"))
    stop_on_signals()
    with Interrupt() as stop:
        send(signal.SIGUSR1)
        assert not stop.requested
    assert heard == ["launcher"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_a_run_a_signal_is_as_ctrl_c(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    stop_on_signals()
    with pytest.raises(KeyboardInterrupt):
        send(number)
