from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from aura.machine.beside import Crew, LateTask, StreamTask
from tests.threads import TIMEOUT, nobody_works


class Layer(nn.Module):
    """Waits in its ``forward`` until the test lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def forward(self) -> None:
        self.entered.set()
        assert self.leave.wait(TIMEOUT)


class Layers(nn.Module):
    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(count))
        self.runs = 0

    def forward(self) -> torch.Tensor:
        for layer in self.layers:
            layer()
        self.runs += 1
        return torch.tensor(self.runs)

    def let_go(self) -> Layers:
        for layer in self.layers:
            layer.leave.set()
        return self


def test_a_task_runs_once_in_another_thread_which_then_ends():
    module, threads = Layers().let_go(), []
    module.register_forward_hook(lambda *_: threads.append(threading.current_thread()))
    task = Crew().task(module, module)
    task.start()
    assert task.result() == task.result() == 1
    assert threads != [threading.current_thread()] and len(threads) == 1
    assert nobody_works()
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_the_caller_goes_on_meanwhile():
    module = Layers()
    task = Crew().task(module, module)
    task.start()
    assert module.layers[0].entered.wait(TIMEOUT)
    assert not task.done
    module.let_go()
    assert task.result() == 1


def test_a_stop_ends_the_thread_at_its_next_module_and_the_work_can_begin_anew():
    module, crew = Layers(), Crew()
    task = crew.task(module, module)
    task.start()
    assert module.layers[0].entered.wait(TIMEOUT)
    threading.Timer(0.05, module.layers[0].leave.set).start()
    task.stop()
    assert nobody_works() and not task.done
    assert not module.layers[1].entered.is_set()
    module.let_go()
    assert task.result() == 1
    task.stop()
    assert task.done, "what is computed stays"


def test_a_task_pauses_while_the_caller_is_in_a_hurry():
    module, crew = Layers(), Crew()
    task = crew.task(module, module)
    task.start()
    assert module.layers[0].entered.wait(TIMEOUT)
    with crew.quiet(), crew.quiet():
        module.let_go()
        time.sleep(0.05)
        assert not module.layers[1].entered.is_set()
    assert task.result() == 1


def test_a_paused_task_can_be_stopped():
    module, crew = Layers(), Crew()
    with crew.quiet():
        task = crew.task(module, module)
        task.start()
        task.stop()
        assert nobody_works() and not module.layers[0].entered.is_set()


def test_what_is_waited_for_comes_before_what_is_not():
    crew, order = Crew(), []
    modules = [Layers() for _ in range(3)]
    for number, module in enumerate(modules):
        module.register_forward_hook(lambda *_, number=number: order.append(number))
    tasks = [crew.task(module, module) for module in modules]
    for task in tasks:
        task.start()
    assert modules[0].layers[0].entered.wait(TIMEOUT)
    threading.Timer(0.05, lambda: [module.let_go() for module in modules]).start()
    tasks[2].result()
    tasks[1].result()
    assert order == [0, 2, 1]
    assert nobody_works()


def test_a_waiting_task_that_is_stopped_never_runs():
    crew, first, second = Crew(), Layers(), Layers().let_go()
    tasks = [crew.task(module, module) for module in (first, second)]
    for task in tasks:
        task.start()
    assert first.layers[0].entered.wait(TIMEOUT)
    tasks[1].stop()
    first.let_go()
    assert tasks[0].result() == 1
    assert nobody_works() and second.runs == 0


def fails_once():
    calls = []

    def work() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return torch.tensor(7)

    return work


def test_an_error_is_raised_once_where_the_result_is_asked_for():
    task = Crew().task(fails_once(), nn.Identity())
    task.start()
    with pytest.raises(RuntimeError, match="no memory"):
        task.result()
    assert task.result() == 7
    assert nobody_works()


def test_others_may_run_the_modules_of_a_task():
    module, crew = Layers(), Crew()
    task = crew.task(module, module)
    task.start()
    assert module.layers[0].entered.wait(TIMEOUT)
    module.let_go()
    with crew.quiet():
        assert module() in (1, 2)
    assert task.result() in (1, 2)


def test_a_late_task_is_computed_when_it_is_asked_for():
    task = LateTask(work := fails_once())
    task.start()
    with pytest.raises(RuntimeError):
        task.result()
    assert task.result() == task.result() == 7
    assert work is not None


class Stream:
    """Stands for a CUDA stream, of which it notes what happens."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        return f"the end of {self.name}"

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_) -> None: ...


def test_a_stream_begins_after_the_caller_s_kernels_and_the_result_waits_for_its_end(monkeypatch):
    log: list[str] = []
    main = Stream(log, "main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append(f"used on {stream.name}"))
    task = StreamTask(fails_once(), torch.device("cuda", 0))
    task.start()  # raises nothing
    with pytest.raises(RuntimeError, match="no memory"):
        task.result()
    log.clear()
    task.start()
    task.start()
    assert log == ["side waits for main", "on side"]
    assert task.result() == task.result() == 7
    assert log[2:] == ["main waits for the end of side", "used on main"]
    task.stop()
    assert task._value is not None, "what is computed stays"
