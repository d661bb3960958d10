"""A golden loss curve: 20 steps of a tiny run, term by term, which a pure refactor must not move.

A change that alters training on purpose makes the curve anew, and its commit says why::

    AURA_WRITE_GOLDEN=1 python -m pytest tests/train/test_golden.py
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from aura.config import Config, DataSettings, LoraSettings, LossSettings, ModelSettings, TrainSettings
from aura.files import write_text
from aura.train.engine import start_process
from aura.train.logs import read_log
from aura.train.trainer import LOSS_NAMES, Trainer
from aura.weights.build import build_model
from tests.train.squares import make_samples

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS, TOLERANCE = 20, 1e-4
"""Other vector units and other numbers of threads, which sum in another order, moved no value by more than 1e-5."""


def fill(model: torch.nn.Module) -> None:
    """Weights that depend on a tensor's name and shape alone, not on the initialisation of a library's release."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tensor.shape)
        tensor.data.copy_(torch.from_numpy(numbers / tensor[0].numel() ** 0.5))


def test_twenty_steps_have_the_losses_of_old(tiny_llava_dir, tiny_sam_dir, tmp_path):
    config = Config(
        model=ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir, lora=LoraSettings(r=4, alpha=8, dropout=0.0)),
        data=DataSettings(conversations_per_image=1, num_workers=0, feature_cache=None),
        loss=LossSettings(mask_resolution="decoder"),
        train=TrainSettings(
            **{"output_dir": str(tmp_path / "run"), "steps": STEPS, "warmup_steps": 2, "log_every": 1, "lr": 3e-3},
            **{"micro_batch_size": 2, "accumulation": 1, "validate_every": 0, "checkpoint_every": 0},
            **{"precision": "fp32", "zero_stage": 0, "gradient_checkpointing": False, "tensorboard": False},
        ),
    )
    process = start_process(config.train)
    model, processor, _ = build_model(config.model, config.data)
    fill(model)
    assert Trainer(config, model, processor, make_samples(tmp_path, 7), None, process).run() == 0
    names = [*LOSS_NAMES, "grad_norm"]
    curve = [[record[name] for name in names] for record in read_log(tmp_path / "run" / "log.jsonl")]
    if os.environ.get("AURA_WRITE_GOLDEN"):
        rows = ",\n".join(json.dumps([float(f"{value:.7g}") for value in row]) for row in curve)
        write_text(GOLDEN, f'{{"names": {json.dumps(names)},\n"steps": [\n{rows}\n]}}\n')
    golden = json.loads(GOLDEN.read_text())
    assert golden["names"] == names and len(golden["steps"]) == len(curve) == STEPS
    for step, (found, expected) in enumerate(zip(curve, golden["steps"], strict=True), 1):
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=1e-7, err_msg=f"step {step}: {names}")
