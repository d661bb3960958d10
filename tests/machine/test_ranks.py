"""Ranks that do not find each other are told why."""

import socket
from datetime import timedelta

import pytest

from aura.machine import ranks


@pytest.fixture
def port(monkeypatch):
    """A port in use; the environment is that of the first of two ranks, which is to listen there."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        number = server.getsockname()[1]
        monkeypatch.setattr(ranks, "MEETING", timedelta(seconds=1))
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": number}.items():
            monkeypatch.setenv(name, str(value))
        yield number


def join():
    ranks.join("gloo", timedelta(minutes=1))


def test_a_port_in_use_is_one_line_with_the_remedy(port):
    with pytest.raises(ValueError, match=rf"^port {port} of this machine is in use.* --master_port {port + 1} .*$"):
        join()


def test_ranks_that_do_not_come(port, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_PORT", str(free))
    with pytest.raises(ValueError, match=rf"^not all 2 ranks came to 127.0.0.1:{free} within .*--master_addr\)$"):
        join()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match=rf"^rank 1 did not reach rank 0 at 127.0.0.1:{free} .*--master_addr\)$"):
        join()


def test_what_the_first_rank_refuses_is_refused():
    with pytest.raises(ValueError, match="no checkpoint"):
        ranks.from_first(lambda: int("no checkpoint"))
    assert ranks.from_first(lambda: 3) == 3
