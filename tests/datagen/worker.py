"""A process that works on a project, as ``build_dataset.py generate`` does: ``worker.py PROJECT PAID [MOMENT NUMBER]``.

Its generator writes the key of every job into the file PAID when it "pays", in one go. At the NUMBER-th MOMENT
(``before``: before it pays, ``paid``: after, ``stored``: after the answer was stored) it kills itself with SIGKILL.
It says that it is ready by the file PAID.ready.PID, and begins when there is no file PAID.hold.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from aura.datagen.generate import Run, RunSettings
from aura.datagen.records import GenerationRequest, GenerationResult, PairDraft
from aura.datagen.store.jobs import Recipe
from aura.datagen.store.store import Store

PROJECT, PAID, MOMENT, NUMBER = (*sys.argv[1:], "", "0")[:4]
passed = {"before": 0, "paid": 0, "stored": 0}


def moment(name: str) -> None:
    passed[name] += 1
    if name == MOMENT and passed[name] == int(NUMBER):
        os.kill(os.getpid(), signal.SIGKILL)


class Paying:
    name, model, concurrency = "fake", "model-1", 3

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        moment("before")
        handle = os.open(PAID, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{request.key} {os.getpid()}\n".encode())
        os.close(handle)
        await asyncio.sleep(0.02)
        moment("paid")
        first = request.image.objects[0].id
        pairs = tuple(PairDraft(f"What is useful, {n}?", "The cup [SEG].", (first,)) for n in range(2))
        return GenerationResult(request.image.image_id, pairs, self.name, self.model, "1", 10, 5, 0.25, "text")

    async def close(self) -> None:
        pass


if __name__ == "__main__":
    Path(f"{PAID}.ready.{os.getpid()}").touch()
    while Path(f"{PAID}.hold").exists():
        time.sleep(0.001)
    with Store.open(PROJECT) as store:
        run = Run(
            store,
            Paying(),
            Recipe("fake", "model-1", "1", 2),
            settings=RunSettings(),
            progress=lambda _: moment("stored"),
        )
        asyncio.run(run.run())
