"""MobileSAM: its encoder against the published one written down again, its files, and AURA upon it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import SamModel

from aura.model import AuraConfig, AuraModel
from aura.model.tiny_vit import MobileSam, build_sam, has_tiny_vit, mobile_sam_config
from aura.weights import load_sam
from aura.weights.sam import upstream_name

SIZES = {"widths": [8, 12, 16, 20], "depths": [1, 2, 1, 1], "heads": [2, 2, 4, 5], "windows": [7, 3, 5, 7]}
SIDE = 96
ONNX = Path(os.environ.get("AURA_ONNX_WEIGHTS", Path(__file__).parents[2] / "weights" / "packages"))


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of ``mobile_sam.pt`` at small sizes, random."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def convolution(name: str, out: int, into: int, side: int) -> None:
        state[f"{name}.c.weight"] = torch.randn(out, into, side, side) / (into * side * side) ** 0.5
        state[f"{name}.bn.weight"], state[f"{name}.bn.bias"] = torch.rand(out) + 0.5, torch.randn(out) / 5
        state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"] = torch.randn(out) / 5, torch.rand(out) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    def linear(name: str, out: int, into: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(out, into) / into**0.5, torch.randn(out) / 5

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(size) + 0.5, torch.randn(size) / 5

    root, widths = "image_encoder", SIZES["widths"]
    convolution(f"{root}.patch_embed.seq.0", widths[0] // 2, 3, 3)
    convolution(f"{root}.patch_embed.seq.2", widths[0], widths[0] // 2, 3)
    for stage, (width, depth) in enumerate(zip(widths, SIZES["depths"], strict=True)):
        for number in range(depth):
            block = f"{root}.layers.{stage}.blocks.{number}"
            if stage == 0:
                convolution(f"{block}.conv1", 4 * width, width, 1)
                convolution(f"{block}.conv2", 4 * width, 1, 3)
                convolution(f"{block}.conv3", width, 4 * width, 1)
                continue
            norm(f"{block}.attn.norm", width)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            state[f"{block}.attn.attention_biases"] = torch.randn(SIZES["heads"][stage], SIZES["windows"][stage] ** 2)
            norm(f"{block}.mlp.norm", width)
            linear(f"{block}.mlp.fc1", 4 * width, width)
            linear(f"{block}.mlp.fc2", width, 4 * width)
            convolution(f"{block}.local_conv", width, 1, 3)
        if stage < 3:
            down, after = f"{root}.layers.{stage}.downsample", widths[stage + 1]
            convolution(f"{down}.conv1", after, width, 1)
            convolution(f"{down}.conv2", after, 1, 3)
            convolution(f"{down}.conv3", after, after, 1)
    norm(f"{root}.norm_head", widths[-1])
    linear(f"{root}.head", 10, widths[-1])
    state[f"{root}.neck.0.weight"] = torch.randn(256, widths[-1], 1, 1) / widths[-1] ** 0.5
    state[f"{root}.neck.2.weight"] = torch.randn(256, 256, 3, 3) / 48
    norm(f"{root}.neck.1", 256)
    norm(f"{root}.neck.3", 256)
    sam = SamModel(mobile_sam_config(SIZES))  # everything but the encoder is SAM's
    own = {k: v for k, v in sam.state_dict().items() if not k.startswith("vision_encoder.")}
    return state | {upstream_name(name): torch.randn_like(value) / 10 for name, value in own.items()}


def published_encoder(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The forward pass as MobileSAM documents it: tokens in rows, batch norms by themselves, biases by offset pairs."""
    root = "image_encoder"

    def convolve(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.c.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        b = f"{name}.bn."
        return F.batch_norm(
            x, state[b + "running_mean"], state[b + "running_var"], state[b + "weight"], state[b + "bias"]
        )

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attend(name: str, x: torch.Tensor, heads: int, side: int) -> torch.Tensor:
        batch, places, width = x.shape
        points = [(i, j) for i in range(side) for j in range(side)]
        offsets: dict[tuple[int, int], int] = {}
        index = torch.tensor(
            [[offsets.setdefault((abs(a - c), abs(b - d)), len(offsets)) for c, d in points] for a, b in points]
        )
        qkv = linear(f"{name}.qkv", norm(f"{name}.norm", x)).view(batch, places, heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.split(width // heads, dim=3))
        scores = q @ k.transpose(2, 3) * (width // heads) ** -0.5 + state[f"{name}.attention_biases"][:, index]
        return linear(f"{name}.proj", (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, places, width))

    x = convolve(f"{root}.patch_embed.seq.2", F.gelu(convolve(f"{root}.patch_embed.seq.0", x, 2)), 2)
    for stage, (heads, side) in enumerate(zip(SIZES["heads"], SIZES["windows"], strict=True)):
        for number in range(SIZES["depths"][stage]):
            block = f"{root}.layers.{stage}.blocks.{number}"
            if stage == 0:
                inner = F.gelu(convolve(f"{block}.conv2", F.gelu(convolve(f"{block}.conv1", x))))
                x = F.gelu(convolve(f"{block}.conv3", inner) + x)
                continue
            batch, width, height, across = x.shape
            grid = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -across % side, 0, -height % side))
            result = torch.zeros_like(grid)
            for top in range(0, grid.shape[1], side):
                for left in range(0, grid.shape[2], side):
                    part = grid[:, top : top + side, left : left + side].reshape(batch, side * side, width)
                    part = attend(f"{block}.attn", part, heads, side).view(batch, side, side, width)
                    result[:, top : top + side, left : left + side] = part
            x = convolve(f"{block}.local_conv", x + result[:, :height, :across].permute(0, 3, 1, 2))
            tokens = x.flatten(2).transpose(1, 2)
            hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.mlp.norm", tokens)))
            x = (tokens + linear(f"{block}.mlp.fc2", hidden)).transpose(1, 2).reshape(batch, width, height, across)
        if stage < 3:
            down = f"{root}.layers.{stage}.downsample"
            x = F.gelu(convolve(f"{down}.conv1", x))
            x = convolve(f"{down}.conv3", F.gelu(convolve(f"{down}.conv2", x, 2 if stage < 2 else 1)))
    for number in (0, 2):
        weight = state[f"{root}.neck.{number}.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        x = norm_map(x, state[f"{root}.neck.{number + 1}.weight"], state[f"{root}.neck.{number + 1}.bias"])
    return x


def norm_map(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return weight[:, None, None] * x + bias[:, None, None]


@pytest.fixture(scope="module")
def file(official, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobile_sam.pt"
    torch.save(official, path)
    return path


@pytest.fixture(scope="module")
def loaded(file) -> MobileSam:
    model, report = load_sam(file, dtype=torch.float32)
    assert "MobileSAM" in report.source and not report.missing
    return model


def test_the_encoder_computes_what_the_published_one_does(official, loaded):
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        ours = loaded.vision_encoder(pixels).last_hidden_state
        theirs = published_encoder(official, pixels)
    assert ours.shape == (2, 256, SIDE // 16, SIDE // 16)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_everything_but_the_encoder_is_sams(official, loaded):
    for name, value in loaded.state_dict().items():
        if not name.startswith("vision_encoder."):
            assert torch.equal(value, official[upstream_name(name)]), name


def test_a_saved_folder_gives_the_same(loaded, tmp_path):
    loaded.save_pretrained(tmp_path)
    again, report = load_sam(tmp_path, dtype=torch.float32)
    assert isinstance(again, MobileSam) and not report.missing and not report.unexpected
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("image_encoder.layers.1.blocks.1.mlp.fc1.weight"), "1 missing"),
        (lambda s: s.pop("image_encoder.layers.0.blocks.0.conv1.bn.running_var"), "missing"),
        (lambda s: s.update({"image_encoder.surplus": torch.zeros(1)}), "1 not SAM's: image_encoder.surplus"),
        (lambda s: s.update({"image_encoder.neck.0.weight": torch.zeros(256, 3, 1, 1)}), "of another shape"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(official, tmp_path, change, told):
    state = dict(official)
    change(state)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match="MobileSAM") as caught:
        load_sam(tmp_path / "broken.pt", dtype=torch.float32)
    assert told in str(caught.value)


def test_the_released_sizes():
    with torch.device("meta"):
        sam = build_sam(mobile_sam_config())
    assert has_tiny_vit(sam.config) and isinstance(sam, MobileSam)
    # TinyViT-5M without its classifier, batch norms folded, and SAM's neck.
    assert sum(p.numel() for p in sam.vision_encoder.parameters()) == 5_738_964
    assert sum(p.numel() for p in sam.mask_decoder.parameters()) == 4_058_340


def test_aura_upon_mobile_sam_is_saved_and_loaded(tiny_llava_config, tmp_path):
    config = AuraConfig(
        llava_config=tiny_llava_config, sam_config=mobile_sam_config(SIZES), seg_token_id=3, eos_token_id=2
    )
    model = AuraModel(config).eval()
    assert isinstance(model.image_encoder, type(MobileSam(mobile_sam_config(SIZES)).vision_encoder))
    assert not any(p.requires_grad for p in model.image_encoder.parameters())
    model.save_pretrained(tmp_path)
    again = AuraModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(model.encode_sam(pixels), again.encode_sam(pixels))


@pytest.mark.skipif(not (ONNX / "encoder.onnx").is_file(), reason="no ONNX files; scripts/get_weights.py fetches them")
def test_the_packaged_weights_compute_what_their_onnx_files_do():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from aura.weights.onnx_files import mobile_sam_from_onnx

    sam = mobile_sam_from_onnx(ONNX / "encoder.onnx", ONNX / "sam.onnx")
    encoder, decoder = (
        runtime.InferenceSession(str(ONNX / name), providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "sam.onnx")
    )
    pixels = torch.randn(1, 3, 1024, 1024)
    (embeddings,) = encoder.run(None, {"input": pixels.numpy()})
    with torch.no_grad():
        ours = sam.vision_encoder(pixels).last_hidden_state
    assert np.abs(embeddings - ours.numpy()).max() < 1e-5
    # Without a third point that is no point, the file answers a box with the best of three masks.
    points = np.array([[[200.0, 150.0], [700.0, 800.0], [0.0, 0.0]]], np.float32)
    given = {
        "image_embeddings": embeddings,
        "point_coords": points,
        "point_labels": np.array([[2, 3, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([1024, 1024], np.float32),
    }
    masks = dict(zip([o.name for o in decoder.get_outputs()], decoder.run(None, given), strict=True))["low_res_masks"]
    with torch.no_grad():
        output = sam(
            image_embeddings=torch.from_numpy(embeddings),
            input_boxes=torch.tensor([[[200.0, 150.0, 700.0, 800.0]]]),
            input_points=torch.zeros(1, 1, 1, 2),
            input_labels=torch.full((1, 1, 1), -1),
            multimask_output=False,
        )
    assert np.abs(masks[0, 0] - output.pred_masks[0, 0, 0].numpy()).max() < 1e-4
