import signal

import pytest

from aura.train import interrupt
from aura.train.interrupt import Interrupt


def test_first_signal_is_remembered_and_its_echo_ignored():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as seen:
        assert seen.signal == 0
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert seen.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_later_one_acts_at_once(monkeypatch):
    monkeypatch.setattr(interrupt, "ECHO", -1.0)
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
