import json

import pytest

from aura.train.logs import RunLog, Window, flat_numbers, read_log, stuck_warning


def test_a_continued_log_holds_each_step_once(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.write("train", step, {"total": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    continued = RunLog(tmp_path, start=2, seconds=100.0)
    continued.write("train", 3, {"total": 33.0})
    assert [(r["step"], r["total"]) for r in read_log(tmp_path / "log.jsonl")] == [(1, 1.0), (2, 2.0), (3, 33.0)]
    assert continued.records("train")[-1]["seconds"] >= 100.0
    assert continued.records("val") == []


def test_a_new_run_starts_an_empty_log(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"kind": "train", "step": 1}) + "\n")
    RunLog(tmp_path)
    assert read_log(tmp_path / "log.jsonl") == []


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(None)
    log.write("train", 1, {"total": 1.0})
    assert log.records("train") == [] and not list(tmp_path.iterdir())


def test_an_infinite_norm_is_null_and_said(tmp_path):
    RunLog(tmp_path).write("train", 1, {"total": 1.0, "grad_norm": float("inf")})
    text = (tmp_path / "log.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["grad_norm"] is None and record["not_finite"] == ["grad_norm"]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, tensorboard=True)
    log.write("val", 5, {"amodal": {"giou_object": 0.25}, "protocol": "teacher_forced"})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    event = board.Scalars("val/amodal/giou_object")[0]
    assert (event.step, event.value) == (5, 0.25)


def test_numbers_of_nested_values():
    values = {"a": 1, "b": {"c": 2.5, "d": None}, "name": "x", "flag": True}
    assert flat_numbers(values) == {"a": 1.0, "b/c": 2.5}


def test_window_continues_from_its_state():
    window = Window()
    window.add({"total": 1.0})
    continued = Window(window.state())
    continued.add({"total": 4.0})
    assert continued.means() == {"total": 2.5}


def test_a_window_is_shared_by_other_processes():
    states = [{"sums": {"total": 6.0}, "count": 3}, {"sums": {"total": 3.0}, "count": 3}]
    for processes in (1, 4):
        shared = Window.shared(states, processes)
        assert shared.means() == {"total": 1.5} and shared.count == 6 / processes


def test_a_loss_that_does_not_move_is_told():
    assert "does not move" in (stuck_warning([10.0, 10.2, 9.9, 10.0]) or "")
    assert stuck_warning([10.0, 9.0, 7.0, 5.0]) is None
    assert stuck_warning([10.0, 10.0]) is None
