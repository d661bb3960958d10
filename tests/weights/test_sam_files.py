"""Official SAM files are read whole, or refused with what is wrong."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import SamModel

from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.weights import load_sam
from aura.weights.build import build_model
from aura.weights.sam import sam_config
from tests.weights.random_sam import SIZES, upstream_sam


@pytest.fixture
def small_file(segment_anything, tmp_path):
    upstream = upstream_sam(segment_anything, SIZES["windows"])
    path = tmp_path / "sam_small.pth"
    torch.save(upstream.state_dict(), path)
    return path


def refuses(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_sam(path, dtype=torch.float32, allow_random=True)
    assert "model.sam" in str(caught.value) and str(path) in str(caught.value)


def test_constants_of_the_normalisation_are_passed_over(small_file):
    state = torch.load(small_file)
    torch.save({**state, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}, small_file)
    _, report = load_sam(small_file, dtype=torch.float32)
    assert not report.unexpected and report.loaded == len(state) + 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "sam.", "module.sam_model."])
def test_names_behind_one_prefix_are_sam_s(small_file, prefix):
    state = torch.load(small_file)
    torch.save({prefix + name: value for name, value in state.items()}, small_file)
    model, report = load_sam(small_file, dtype=torch.float32)
    assert not report.missing and not report.unexpected
    assert torch.equal(model.vision_encoder.pos_embed, state["image_encoder.pos_embed"])


def test_names_behind_several_prefixes_are_refused(small_file):
    state = torch.load(small_file)
    torch.save({("a." if "mask" in name else "b.") + name: value for name, value in state.items()}, small_file)
    refuses(small_file, "is not SAM")


def test_weights_get_the_dtype_asked_for_and_the_file_may_go(small_file):
    state = torch.load(small_file)
    model, _ = load_sam(small_file, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    again, _ = load_sam(small_file, dtype=torch.float32)
    small_file.write_bytes(b"")
    assert torch.equal(again.vision_encoder.pos_embed, state["image_encoder.pos_embed"])
    assert all(parameter.requires_grad for parameter in again.mask_decoder.parameters())


def test_files_from_before_torch_1_6_are_read(small_file):
    state = torch.load(small_file)
    torch.save(state, small_file, _use_new_zipfile_serialization=False)
    model, _ = load_sam(small_file, dtype=torch.float32)
    assert torch.equal(model.vision_encoder.pos_embed, state["image_encoder.pos_embed"])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("archive", [True, False])
def test_truncated_files_are_refused(small_file, share, archive):
    torch.save(torch.load(small_file), small_file, _use_new_zipfile_serialization=archive)
    data = small_file.read_bytes()
    small_file.write_bytes(data[: int(share * len(data))])
    refuses(small_file, "damaged")


def test_other_files_are_refused(small_file, tmp_path, tiny_sam_config):
    small_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 375042383\n")
    refuses(small_file, "damaged")
    refuses(tmp_path / "absent.pth", "does not exist")

    class Attack:
        def __reduce__(self):
            return (os.system, ("true",))

    torch.save({"a": Attack()}, small_file)
    refuses(small_file, "not a file of plain weights")
    for wrong, match in (
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "holds the entries model, epoch, not a bare state dict"),
        ([torch.ones(1)], "holds list"),
        ({}, "holds nothing"),
        ({"model.mm_projector.weight": torch.ones(2, 2)}, "LLaVA model; give it as model.mllm"),
        ({"model.visual_model.image_encoder.pos_embed": torch.ones(1)}, "LISA checkpoint; give it as model.init_from"),
        (SamModel(tiny_sam_config).state_dict(), "names of transformers; give the folder"),
        ({"backbone.conv.weight": torch.ones(1)}, r"it holds backbone\.conv\.weight; download an official file"),
    ):
        torch.save(wrong, small_file)
        refuses(small_file, match)


def test_incomplete_files_are_refused_by_tensor(small_file):
    whole = torch.load(small_file)

    def altered(match, *dropped, **changed):
        state = {name: value for name, value in whole.items() if name not in dropped} | changed
        torch.save(state, small_file)
        refuses(small_file, match)

    altered(r"'mask_decoder\.iou_token\.weight' is missing; the file is incomplete", "mask_decoder.iou_token.weight")
    altered(r"1 missing: image_encoder\.neck\.3\.bias\)", "image_encoder.neck.3.bias")
    altered(r"'image_encoder\.pos_embed' is missing", "image_encoder.pos_embed")
    altered(r"1 not SAM's: extra", **{"extra": torch.ones(1)})
    altered(
        r"1 of another shape: image_encoder\.blocks\.0\.attn\.qkv\.bias \[71\] for \[72\]",
        **{"image_encoder.blocks.0.attn.qkv.bias": torch.ones(71)},
    )
    lost = [name for name in whole if name.startswith("image_encoder.blocks.1.")]
    altered(r"'image_encoder\.blocks\.1\.attn\.rel_pos_h' is missing; the file is incomplete", *lost)


def test_an_official_encoder_that_lost_its_last_layers_is_noticed(segment_anything):
    """Its remaining tensors alone would describe a smaller encoder."""
    with torch.device("meta"):
        upstream = segment_anything.sam_model_registry["vit_b"]()
    shapes = {key: tuple(value.shape) for key, value in upstream.state_dict().items() if ".blocks.11." not in key}
    config, _ = sam_config(shapes, "test")
    assert config.vision_config.num_hidden_layers == 12


def test_a_folder_whose_weights_do_not_fit_its_config_is_refused(tiny_sam_dir):
    path = Path(tiny_sam_dir) / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["output_channels"] = 16
    path.write_text(json.dumps(config))
    refuses(tiny_sam_dir, "do not fit its config.json")


def test_a_model_is_built_from_an_official_file(small_file, tiny_llava_dir):
    settings = ModelSettings(mllm=tiny_llava_dir, sam=str(small_file), lora=LoraSettings(enabled=False))
    model, processor, report = build_model(settings, DataSettings(max_length=300))
    state = torch.load(small_file)
    assert processor.sam_image_size == 64
    for decoder in (model.visible_decoder, model.amodal_decoder):
        assert torch.equal(decoder.iou_token.weight, state["mask_decoder.iou_token.weight"])
    rows = {part.part: part for part in report.parts if "sam_small.pth" in part.source}
    assert {"image_encoder", "prompt_encoder", "mask decoders"} <= rows.keys()
    assert sum(part.loaded for part in rows.values()) >= len(state)
    assert not any(part.missing or part.unexpected for part in rows.values())
