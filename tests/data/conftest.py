"""A small image with three objects, and processors for it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerBase

from aura.data.processor import Processor
from aura.data.tokenization import load_tokenizer
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Sample, Turn

SIZES = {"sam_image_size": 64, "clip_image_size": 28, "num_image_tokens": 4, "max_length": 1024}
LLAMA = Path(os.environ.get("AURA_LLAMA_TOKENIZER", Path(__file__).parents[3] / "shared" / "data" / "llama_tokenizer"))


@pytest.fixture
def processor(tiny_tokenizer) -> Processor:
    return Processor(tiny_tokenizer, **SIZES)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """Llama's SentencePiece model alone in a folder, as LLaVA v1 ships it."""
    source = LLAMA / "tokenizer.model"
    if not source.is_file():
        pytest.skip(f"no Llama tokenizer in {LLAMA}; set AURA_LLAMA_TOKENIZER to a folder with tokenizer.model")
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def llama_tokenizer(llama_folder) -> PreTrainedTokenizerBase:
    return load_tokenizer(llama_folder)


@pytest.fixture
def llama_processor(llama_tokenizer) -> Callable[..., Processor]:
    settings = {**SIZES, "use_im_start_end": True}
    return lambda **changes: Processor(copy.deepcopy(llama_tokenizer), **{**settings, **changes})


@pytest.fixture
def conversations() -> tuple[Conversation, ...]:
    ride = Turn("What could I ride?", "You could ride the bus [SEG], which the tree [SEG] hides.", (10, 30))
    return (
        Conversation(1, (ride, Turn("And eat?", "Only the apple [SEG].", (20,)))),
        Conversation(2, (Turn("What is there?", "[SEG] and [SEG] [SEG]", (30, 10, 10)),)),
        Conversation(3, (Turn("How are you?", "Fine."),)),
    )


@pytest.fixture
def sample(tmp_path, conversations) -> Sample:
    """40 x 60 pixels (height x width); object 40 is named by no conversation."""
    rng = np.random.default_rng(0)
    path = tmp_path / "scene.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    objects = []
    for number in range(4):
        amodal = np.zeros((40, 60), dtype=bool)
        amodal[5 * number : 5 * number + 20, 10:30] = True
        visible = amodal.copy()
        visible[:, 10 : 10 + 5 * number] = False
        rate = 1 - visible.sum() / amodal.sum()
        name = ["bus", "apple", "tree", "cat"][number]
        objects.append(AmodalObject(10 * (number + 1), name, encode_rle(visible), encode_rle(amodal), float(rate)))
    return Sample(7, path, 40, 60, tuple(objects), conversations)
