"""Trackers beside the log, with stand-ins for the packages: what they get, that a run continues, that none stops it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from aura.config import TrainSettings
from aura.train import trackers
from aura.train.logs import RunLog, read_log
from aura.train.trackers import check_services


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that keeps what it is given; each run that is begun has an id of its own."""
    module = ModuleType("wandb")
    module.begun, module.logged, module.finished = [], [], 0

    def init(**options):
        module.begun.append(options)

        def finish():
            module.finished += 1

        def log(numbers, step):
            module.logged.append((step, numbers))

        return SimpleNamespace(id=options["id"] or f"run{len(module.begun)}", log=log, finish=finish)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    module = ModuleType("mlflow")
    module.begun, module.params, module.logged, module.ended = [], [], [], []

    def start_run(run_id, run_name):
        module.begun.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "first"))

    module.start_run, module.log_params = start_run, module.params.append
    module.log_metrics = lambda numbers, step: module.logged.append((step, numbers))
    module.end_run = lambda: module.ended.append(True)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_wandb_gets_the_numbers_and_a_continued_run_its_own_run(tmp_path, wandb):
    log = RunLog(tmp_path, services=["wandb"], settings={"train.lr": 0.1})
    log.write("train", 1, {"total": 2.0, "grad_norm": float("inf"), "visible": {"ciou": 0.5}, "protocol": "x"})
    log.close()
    RunLog(tmp_path, start=1, services=["wandb"]).close()
    RunLog(tmp_path, services=["wandb"]).close()
    assert wandb.logged == [(1, {"train/total": 2.0, "train/visible/ciou": 0.5})]
    assert [options["id"] for options in wandb.begun] == [None, "run1", None] and wandb.finished == 3
    assert wandb.begun[0]["config"] == {"train.lr": 0.1} and wandb.begun[0]["name"] == tmp_path.name


def test_mlflow_gets_the_numbers_and_the_settings_once(tmp_path, mlflow):
    log = RunLog(tmp_path, services=["mlflow"], settings={"model.mllm": "x" * 900})
    log.write("val", 5, {"amodal": {"ciou": 0.25}})
    log.close()
    RunLog(tmp_path, start=5, services=["mlflow"], settings={"model.mllm": "x"}).close()
    assert mlflow.begun == [(None, tmp_path.name), ("first", None)] and len(mlflow.ended) == 2
    assert mlflow.params == [{"model.mllm": "x" * 250}] and mlflow.logged == [(5, {"val/amodal/ciou": 0.25})]


def test_a_service_that_fails_is_named_and_stops_nothing(tmp_path, wandb, mlflow, capsys):
    def down(*args, **options):
        raise ConnectionError("https://user:secret@host")

    mlflow.start_run = down
    log = RunLog(tmp_path, services=["wandb", "mlflow"])
    wandb.logged = SimpleNamespace(append=down)
    for step in (1, 2):
        log.write("train", step, {"total": 1.0})
    log.close()
    said = capsys.readouterr().out
    assert said.count("wandb gets no more numbers of this run (ConnectionError)") == 1
    assert said.count("mlflow gets no more numbers") == 1 and "secret" not in said
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_a_package_that_is_missing_is_told_before_the_start(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_services(TrainSettings().loggers)
    with pytest.raises(ValueError, match=r"train\.loggers names mlflow, .*pip install mlflow"):
        check_services(["mlflow"])
