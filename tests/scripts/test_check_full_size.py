"""``scripts/check_full_size.py`` at tiny scale: the same path as at full size."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_full_size", ROOT / "scripts" / "check_full_size.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["check_full_size"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_it_runs_every_part_and_writes_what_it_saw(script, tmp_path, capsys, tiny_tokenizer_dir):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(photo)
    out = tmp_path / "result"
    arguments = ["--scale", "tiny", "--image", photo, "--tokenizer", tiny_tokenizer_dir, "--out", out]
    assert script.main([str(argument) for argument in arguments]) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    rows = {row["part"]: row for row in result["parts"]}
    assert list(rows)[:5] == ["building", "SAM encoder", "CLIP tower", "projector", "language model"]
    assert rows["SAM encoder"]["output"] == "1x64x8x8" and rows["prompt encoder"]["output"] == "2x64"
    assert rows["masks at the image's size"]["output"] == "2x90x120, 2x90x120"
    assert "bfloat16" in rows["language model"]["dtypes"] and rows["language model head"]["dtypes"] == "bfloat16"
    for part in ("SAM encoder", "CLIP tower", "visible decoder", "spatial occlusion encoder"):
        assert rows[part]["dtypes"] == "float32"
    assert all(row["finite"] and row["seconds"] >= 0 and row["peak_gib"] > 0 for row in result["parts"])
    whole = rows["whole forward pass"]
    assert whole["peak_gib"] >= max(rows[part]["peak_gib"] for part in ("SAM encoder", "language model"))
    assert result["everything finite"] is True and result["image"] == "120 x 90, a photograph"
    text = out.with_suffix(".md").read_text()
    assert "| language model |" in text and "/" not in text.replace("scripts/check_full_size.py", "")
    assert "everything finite" in capsys.readouterr().out


def test_casting_as_it_runs_is_the_model_in_fp32(script, tiny_tokenizer_dir, tmp_path):
    config = script.architecture("tiny")
    processor = script.Processor(
        script.load_tokenizer(tiny_tokenizer_dir),
        sam_image_size=64,
        clip_image_size=28,
        num_image_tokens=config.num_image_tokens,
        use_im_start_end=True,
    )
    model = script.build(config, processor)
    linears = [m for m in model.mllm.language_model.modules() if type(m) is nn.Linear]
    assert linears and {m.weight.dtype for m in linears} == {torch.bfloat16, torch.float32}  # and fp32 adapters
    plain = copy.deepcopy(model)
    for module in plain.modules():
        vars(module).pop("forward", None)
    plain.float()
    picture = script.make_image(48, 64)
    picture.save(tmp_path / "picture.png")
    batch = script.make_batch(processor, picture, tmp_path / "picture.png")
    with torch.no_grad():
        found, wanted = model(batch), plain(batch)
    for name in ("text_logits", "visible_logits", "amodal_logits", "spatial_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)
    assert found.visible_logits.std() > 0 and len(found.visible_logits) == 2


def test_it_refuses_before_it_fills_the_memory(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "available_bytes", lambda: 8 * 2**30)
    monkeypatch.setattr(script, "build", None)  # it must not come so far
    assert script.main(["--scale", "full"]) == 2
    assert "19 GiB of memory and 8.0 are free" in capsys.readouterr().err


def test_the_full_architecture_is_the_7b_model_with_vit_h(script):
    config = script.architecture("full")
    assert config.llava_config.text_config.num_hidden_layers == 32 and config.num_image_tokens == 256
    assert config.sam_config.vision_config.hidden_size == 1280 and config.sam_config.vision_config.image_size == 1024
