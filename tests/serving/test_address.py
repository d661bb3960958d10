"""The socket of a page: taken before anything slow, and one clear error where it cannot be."""

from __future__ import annotations

import pytest

from aura.serving.address import is_loopback, listen, names_of, url_of, warn_of_others


def test_an_address_is_held_from_the_first_moment():
    with listen("127.0.0.1", 0, "") as mine:
        port = mine.getsockname()[1]
        assert url_of("127.0.0.1", mine) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1, port {port} .*; choose another --port"):
            listen("127.0.0.1", port, "choose another --port")


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("a.invalid", 0), ("x" * 70, 0), ("192.0.2.1", 0)])
def test_an_address_that_is_none_is_one_clear_error(host: str, port: int):
    with pytest.raises(ValueError, match=f"cannot listen on {host}, port {port} .*; choose others"):
        listen(host, port, "choose others")


def test_loopback_is_told_from_what_others_reach(capsys):
    hosts = ("localhost", "::1", "127.9.9.9", "0.0.0.0", "::", "10.0.0.1", "example.org")
    assert [is_loopback(host) for host in hosts] == [*[True] * 3, *[False] * 4]
    assert names_of("0.0.0.0", "proxy.example") == ()
    assert names_of("127.9.9.9", "proxy.example") == ("localhost", "127.0.0.1", "::1", "127.9.9.9", "proxy.example")
    warn_of_others("127.0.0.1", "", "stay")
    assert capsys.readouterr().err == ""
    warn_of_others("0.0.0.0", " by anybody", "stay")
    assert capsys.readouterr().err == "warning: 0.0.0.0 can be reached from other machines by anybody. Safer: stay\n"
