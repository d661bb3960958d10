"""The server, its figures and the script that manages people."""

from __future__ import annotations

import json
import re
import runpy
import socket
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from aura.datagen.review.app import create_app, serve
from aura.datagen.settings import ProjectSettings, ReviewSettings, SourceSettings
from aura.datagen.store.agreement import cohen_kappa

from .conftest import NAMES, Project, fields

# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_dashboard_counts_and_measures_agreement(project: Project):
    said: dict[str, dict[int, str]] = {name: {} for name in NAMES}
    plan = {name: iter(["accept", "accept", "reject", "accept", "accept", "reject"]) for name in NAMES}
    for name in NAMES:
        browser = project.browser(name)
        while (queue := project.store.queues.of(project.people[name], 1)) and queue[0].kind == "judge":
            item = queue[0]
            decision = said[name][item.pair_id] = next(plan[name])
            browser.send(browser.open(f"/pairs/{item.pair_id}"), decision)
    page = project.browser("Ada").open("/dashboard")
    rows = {row[0]: row[1:] for row in table_rows(page)}
    for name in NAMES:
        waiting = project.store.queues.num_waiting(project.people[name])
        assert rows[name][:3] == [str(len(said[name])), "0", str(waiting)]
    for one, other in (("Ada", "Grace"), ("Ada", "Edsger"), ("Grace", "Edsger")):
        both = sorted(said[one].keys() & said[other].keys())
        kappa = cohen_kappa([said[one][p] for p in both], [said[other][p] for p in both])
        assert rows[f"{one} and {other} (Cohen)"] == [str(len(both)), "–" if kappa is None else f"{kappa:.2f}"]
    fleiss = project.store.reviews.agreement().fleiss
    assert fleiss is not None and rows["all (Fleiss)"] == ["9", f"{fleiss:.2f}"]
    states = project.store.status().pairs
    assert sum(states.values()) == 9
    for state in ("accepted", "changed", "rejected"):
        assert f'swatch {state}"></span>{state} <strong>{states[state]}</strong>' in page


def table_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]*>", "", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def test_the_dashboard_says_when_nobody_can_decide(project: Project, script):
    assert "add a third" not in project.browser("Ada").open("/dashboard")
    code, _, err = script("deactivate", "Edsger")
    assert code == 0 and "note: two people judge every pair" in err
    assert "Two people judge every pair and nobody is left to decide" in project.browser("Ada").open("/dashboard")
    assert "add a third" in script("list")[2]


# --- the server and the script ----------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """What would be served: the sockets that uvicorn is given."""
    import uvicorn

    given: list[tuple[uvicorn.Config, object]] = []

    def run(self, sockets):
        given.append((self.config, sockets[0].getsockname()))
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return given


def settings_of(tmp_path: Path, **review: object) -> ProjectSettings:
    source = SourceSettings(str(tmp_path / "a.json"), str(tmp_path / "pictures"))
    return ProjectSettings(str(tmp_path), (source,), review=ReviewSettings(**review))  # type: ignore[arg-type]


def test_it_listens_on_loopback_and_warns_elsewhere(project: Project, tmp_path: Path, served, capsys):
    serve(project.store, settings_of(tmp_path, port=0))
    said = capsys.readouterr()
    assert served[0][1][0] == "127.0.0.1" and f":{served[0][1][1]}/" in said.out and "warning" not in said.err
    serve(project.store, settings_of(tmp_path, port=0, host="0.0.0.0"))
    assert "warning: 0.0.0.0 can be reached from other machines without encryption" in capsys.readouterr().err


def test_an_address_that_is_taken_is_one_clear_error(project: Project, tmp_path: Path, served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1, port {port} .*--review.port"):
            serve(project.store, settings_of(tmp_path, port=port))


def test_https_cookies_travel_over_https_only(project: Project):
    client = TestClient(create_app(project.store, secure=True), base_url="https://localhost")
    page = client.get("/login").text
    response = client.post("/login", data={**fields(page), "token": project.tokens["Ada"]}, follow_redirects=False)
    assert all("secure" in c.lower() for c in response.headers.get_list("set-cookie") if "max-age=0" not in c.lower())


@pytest.fixture
def script(project: Project, tmp_path: Path, capsys):
    """``scripts/review.py`` on the project: exit code, output, errors."""
    project.store.database.set_meta("complete", True)
    config = tmp_path / "datagen.yaml"
    sources = [{"annotations": str(tmp_path / "a.json"), "images": str(tmp_path / "pictures")}]
    config.write_text(json.dumps({"project": str(tmp_path), "sources": sources}))
    main = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "review.py"))["main"]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([arguments[0], *arguments[1:], "--config", str(config)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_script_manages_people_and_shows_each_token_once(project: Project, script):
    code, out, _ = script("add-annotator", "Barbara", "Ada Lovelace")
    assert code == 0
    tokens = dict(line.split(": ") for line in out.splitlines())
    assert list(tokens) == ["Barbara", "Ada Lovelace"]
    authenticate = project.store.annotators.authenticate
    assert all(authenticate(token).name == name for name, token in tokens.items())
    code, out, err = script("add-annotator", "--if-missing", "barbara")
    assert (code, out) == (0, "") and "barbara is there already; `review.py new-token 'barbara'`" in err
    assert "there is an annotator" in script("add-annotator", "Barbara")[2]
    code, out, _ = script("new-token", "Barbara")
    assert authenticate(tokens["Barbara"]) is None and authenticate(out.split(": ")[1]).name == "Barbara"
    assert script("deactivate", "Barbara")[0] == 0 and authenticate(out.split(": ")[1]) is None
    code, listed, _ = script("list")
    assert "inactive" in next(line for line in listed.splitlines() if "Barbara" in line)
    assert not any(token in listed for token in tokens.values())
    assert script("activate", "Barbara")[0] == 0 and authenticate(out.split(": ")[1]) is not None


def test_mistakes_in_calling_the_script_are_one_line(project: Project, script):
    for arguments, message in (
        (("new-token", "Nobody"), "no annotator 'Nobody'"),
        (("add-annotator", ""), "an annotator's name"),
        (("serve", "--certificate", "a.pem"), "needs both"),
        (("list", "--nonsense"), "nonsense"),
        (("nonsense",), "no such command"),
    ):
        code, _, err = script(*arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1
