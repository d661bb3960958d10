"""What several tests of weights need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from aura.config import LoraSettings, ModelSettings
from tests.weights.original import PIECES, V1, VISION, write_v1

TEXT = "The quick brown fox asks a human what hides the bus, and the assistant answers politely: a tree does. "


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory) -> bytes:
    """A tokenizer like Llama's, with 400 pieces (Llama's has 32000)."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text(TEXT * 3)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=PIECES, model_type="bpe",
        byte_fallback=True, pad_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return (folder / "tokenizer.model").read_bytes()


@pytest.fixture
def v1():
    """A random original LLaVA."""
    return V1()


@pytest.fixture
def clip_dir(v1, tmp_path):
    """A whole CLIP, text side and all, whose image side is the original's tower."""
    text = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=VISION.to_dict(), projection_dim=16))
    clip.vision_model.load_state_dict(v1.tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.fixture
def v1_dir(v1, sentencepiece_model, tmp_path):
    """Its folder, with tensors that a loader passes over."""
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((4,), 9.0)}
    tower = {"model.vision_tower.vision_tower.vision_model.post_layernorm.bias": torch.full((24,), 9.0)}
    return write_v1(tmp_path / "llava-v1", sentencepiece_model, v1.state | rotary | tower, v1.config())


@pytest.fixture
def settings(v1_dir, clip_dir, tiny_sam_dir):
    """A model from that folder; files about other weights have settings of their own."""
    return ModelSettings(mllm=v1_dir, vision_tower=clip_dir, sam=tiny_sam_dir, lora=LoraSettings(r=4, dropout=0.0))


@pytest.fixture(scope="module")
def segment_anything():
    """The upstream package's modules; its own ``__init__`` needs torchvision, so an empty one takes its place."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None:
        pytest.skip("segment-anything is not installed (requirements-dev.txt)")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in sys.modules if n.split(".")[0] == "segment_anything"]:
            patch.delitem(sys.modules, name)
        package = types.ModuleType("segment_anything")
        package.__path__ = [str(Path(spec.origin).parent)]
        patch.setitem(sys.modules, "segment_anything", package)
        yield importlib.import_module("segment_anything.build_sam")
        for name in [n for n in sys.modules if n.startswith("segment_anything.")]:
            del sys.modules[name]
