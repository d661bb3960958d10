"""A tiny run as users start one: a YAML file and the data it names."""

import numpy as np
import pytest
import yaml
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Turn

SIZE = 32


@pytest.fixture
def tiny_run(tiny_llava_dir, tiny_sam_dir, tmp_path):
    """A YAML layer for a tiny run, and the data it names: six images, those of even number without any ``[SEG]``."""
    images, conversations = [], {}
    for number in range(6):
        Image.fromarray(np.full((SIZE, SIZE, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[number : number + 16, 8:24] = True
        thing = AmodalObject(number + 1, "thing", encode_rle(mask), encode_rle(mask), 0.0)
        images.append(AnnotatedImage(number, f"{number}.png", SIZE, SIZE, (thing,)))
        turn = Turn("Is it a bus?", "No.") if number % 2 == 0 else Turn("What?", "It [SEG].", (number + 1,))
        conversations[number] = [Conversation(number + 1, (turn,))]
    AmodalReasonSeg.build(images, conversations, source=tmp_path / "train.json").save()
    settings = {
        "model": {"mllm": tiny_llava_dir, "sam": tiny_sam_dir},
        "data": {
            "train": {"annotations": str(tmp_path / "train.json"), "images": str(tmp_path)},
            "feature_cache": str(tmp_path / "features"),
            "num_workers": 0,
        },
        "train": {
            **{"output_dir": str(tmp_path / "run"), "steps": 8, "warmup_steps": 1, "accumulation": 1, "lr": 1e-3},
            **{"precision": "fp32", "zero_stage": 2, "gradient_checkpointing": False, "tensorboard": False},
            **{"log_every": 1, "checkpoint_every": 2},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
