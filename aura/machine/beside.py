"""Work beside the caller: in a thread, where a CPU computes, or on a stream of its own, where a GPU does.

A thread cannot be stopped from outside. So the modules that it runs look up at each of their calls: they wait while
others ask for quiet, and end where the result is no longer wanted, or with the program.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

Work = Callable[[], torch.Tensor]


class Task(Protocol):
    """A tensor that is being computed. Only ``result`` waits for it, and only there is its error raised, once.

    After an error or a stop, whoever starts it or asks for its result computes it anew.
    """

    def start(self) -> None: ...

    def result(self) -> torch.Tensor: ...

    def stop(self) -> None:
        """Give up a computation that is going on; nothing of it runs afterwards."""


class Stopped(BaseException):
    """Leaves the modules of a task that is no longer wanted; no library takes it for an error of its own."""


class Crew:
    """A thread that works through tasks one by one, and is there only while there are any."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._waiting: deque[ThreadTask] = deque()
        self._running: ThreadTask | None = None
        self._thread: threading.Thread | None = None
        self._quiet = 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within ``with``, tasks pause: the caller is in a hurry."""
        with self._change:
            self._quiet += 1
        try:
            yield
        finally:
            with self._change:
                self._quiet -= 1
                self._change.notify_all()

    def task(self, work: Work, module: nn.Module) -> ThreadTask:
        """``work``, which runs ``module`` and can pause and stop at its modules' calls."""
        return ThreadTask(self, work, module)

    # --- for tasks ----------------------------------------------------------------------------------------------------

    def add(self, task: ThreadTask, *, first: bool = False) -> None:
        with self._change:
            if task.done or task is self._running:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="aura-beside")
                thread.start()  # it waits for this lock
                self._thread = thread
            if task in self._waiting:
                self._waiting.remove(task)
            (self._waiting.appendleft if first else self._waiting.append)(task)

    def wait_for(self, task: ThreadTask) -> None:
        """Until ``task`` is done, or was stopped by someone else."""
        with self._change:
            self._change.wait_for(lambda: task is not self._running and task not in self._waiting)

    def drop(self, task: ThreadTask) -> None:
        with self._change:
            if task in self._waiting:
                self._waiting.remove(task)
            thread = self._thread
            if task is self._running:
                task.unwanted = True
                self._change.notify_all()
            self._change.wait_for(lambda: task is not self._running and (self._thread is None or bool(self._running)))
            ended = self._thread is None
        if ended and thread is not None:
            thread.join()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._change:
                self._running = self._waiting.popleft() if self._waiting else None
                if self._running is None:
                    self._thread = None
                    self._change.notify_all()
                    return
                task = self._running
                task.unwanted = False
                self._change.notify_all()
            task.run(self._look_up)
            with self._change:
                self._running = None
                self._change.notify_all()

    def _look_up(self, *_: object) -> None:
        if threading.current_thread() is not self._thread:
            return  # others call these modules too
        task, main = self._running, threading.main_thread()
        assert task is not None
        if self._quiet and not task.unwanted:
            with self._change:
                while self._quiet and not task.unwanted and main.is_alive():
                    self._change.wait(timeout=0.2)
        if task.unwanted or not main.is_alive():
            raise Stopped


class ThreadTask:
    """A :class:`Task` of a :class:`Crew`."""

    def __init__(self, crew: Crew, work: Work, module: nn.Module) -> None:
        self.crew, self.work, self.module = crew, work, module
        self.unwanted = False
        self._value: torch.Tensor | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self._value is not None or self._error is not None

    def start(self) -> None:
        self.crew.add(self)

    def result(self) -> torch.Tensor:
        while True:
            self.crew.add(self, first=True)
            self.crew.wait_for(self)
            value, error, self._error = self._value, self._error, None
            if error is not None:
                raise error
            if value is not None:
                return value

    def stop(self) -> None:
        self.crew.drop(self)

    def run(self, look_up: Callable[..., None]) -> None:
        hooks = [module.register_forward_pre_hook(look_up) for module in self.module.modules()]
        try:
            self._value = self.work()
        except Stopped:
            pass
        except BaseException as error:  # it belongs to whoever waits for the result
            self._error = error
        finally:
            for hook in hooks:
                hook.remove()


class StreamTask:
    """A :class:`Task` on a CUDA stream of its own: the caller's kernels do not wait for it.

    It starts after the kernels that were launched so far. A stop forgets the result; what was launched runs out.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work, self.device = work, device
        self._value: torch.Tensor | None = None
        self._end: torch.cuda.Event | None = None
        self._error: Exception | None = None

    def start(self) -> None:
        if self._value is not None or self._error is not None:
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):
                self._value = self.work()
                self._end = stream.record_event()
        except Exception as error:  # it belongs to whoever waits for the result
            self._value, self._error = None, error

    def result(self) -> torch.Tensor:
        self.start()
        error, self._error = self._error, None
        if error is not None:
            raise error
        assert self._value is not None
        if self._end is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self._end)
            self._value.record_stream(stream)
            self._end = None
        return self._value

    def stop(self) -> None:
        if self._end is not None:
            self._value = self._end = None


class LateTask:
    """A :class:`Task` that the caller computes when the result is asked for."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._value: torch.Tensor | None = None

    def start(self) -> None: ...

    def result(self) -> torch.Tensor:
        if self._value is None:
            self._value = self.work()
        return self._value

    def stop(self) -> None: ...
