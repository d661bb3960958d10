"""Bytes of activations, counted from the architecture.

What a training step keeps for its backward pass is what autograd saves, operation by operation: a frozen linear layer
keeps nothing, a trained one its input, a norm its input in fp32, SiLU and a product their factors, attention its
queries, keys, values and output (never the matrix of scores: SDPA). SAM's and CLIP's encoders run without gradient and
keep nothing. What is trained is in fp32; the language model multiplies in its half precision under autocast, the mask
decoders and the heads compute in fp32. The tests hold these counts against the tensors that a real step keeps.

Legend: B images, L packed tokens, H hidden size, I width of the MLP, M supervised tokens, V vocabulary, N objects, P
positions of SAM's embedding grid, C channels of SAM's prompts, w bytes of a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from aura.losses import PIXELS_AT_ONCE
from aura.model.aura import OBJECTS_AT_ONCE
from aura.model.configuration import AuraConfig
from aura.model.occlusion import IMAGE_SIDES
from aura.model.tiled_attention import TILE_BYTES
from aura.model.tiny_vit import EXPANSION, has_tiny_vit

FLOAT = 4


@dataclass(frozen=True)
class Workload:
    """What one forward pass on one GPU is given.

    Args:
        images: B.
        conversations: Conversations about each image.
        prompt_tokens: Tokens that the conversations of an image share besides the image: system prompt and marks.
        text_tokens: Tokens of one conversation after that: question and answer.
        answer_tokens: Those of them that are supervised.
        objects: ``[SEG]`` of one conversation, on average.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """

    images: int = 1
    conversations: int = 3
    prompt_tokens: int = 45
    text_tokens: int = 80
    answer_tokens: int = 45
    objects: float = 2
    height: int = 480
    width: int = 640

    def length(self, config: AuraConfig) -> int:
        """L, tokens of one image's packed sequence."""
        return self.prompt_tokens + config.num_image_tokens + self.conversations * self.text_tokens

    @property
    def num_targets(self) -> int:
        return self.images * self.conversations * self.answer_tokens

    @property
    def num_objects(self) -> int:
        return round(self.images * self.conversations * self.objects)


def saved(
    config: AuraConfig,
    work: Workload,
    *,
    value_bytes: int,
    checkpointing: bool,
    mask_resolution: Literal["image", "decoder"],
    on_gpu: bool = True,
) -> dict[str, int]:
    """Bytes that the forward pass and the losses of one micro-batch keep for the backward pass, by part.

    Args:
        config: The architecture.
        work: The micro-batch.
        value_bytes: w of the language model: 2 for fp16 and bf16, 4 for fp32.
        checkpointing: Of the language model's layers.
        mask_resolution: Where masks are compared.
        on_gpu: Dropout keeps one byte for each value on a GPU, w on a CPU.
    """
    tokens, w = work.images * work.length(config), value_bytes
    text = config.llava_config.text_config
    layer = w * tokens * text.hidden_size if checkpointing else _decoder_layer(config, tokens, w, on_gpu)
    heads = (config.masks != "visible") + (config.masks != "amodal")
    # Of many objects, all but one chunk keep what goes in and out, and are computed anew.
    whole = min(work.num_objects, max(1, OBJECTS_AT_ONCE * 64 * 64 // _grid(config)))
    drawn = whole * (heads * _mask_decoder(config) + _occlusion(config))
    drawn += (work.num_objects - whole) * _drawn(config, heads)
    of_an_image = min(work.num_objects / work.images, max(1, PIXELS_AT_ONCE // (work.height * work.width)))
    compared = work.images * of_an_image * _mask_losses(config, work, heads, mask_resolution)
    compared += (work.num_objects - work.images * of_an_image) * _drawn(config, heads)
    return {
        "language model": text.num_hidden_layers * layer + _around_the_layers(config, work, w),
        "text loss": work.num_targets * (w * text.hidden_size + FLOAT * text.vocab_size) + _head_copy(config, w),
        "mask decoders": int(drawn),
        "mask losses": int(compared),
    }


def working(config: AuraConfig, work: Workload, *, value_bytes: int, checkpointing: bool, encode: bool) -> int:
    """Bytes that come and go: the largest of what SAM's encoder, one recomputed layer or the logits need at a time.

    Args:
        config: The architecture.
        work: The micro-batch.
        value_bytes: w.
        checkpointing: Of the language model's layers.
        encode: The frozen encoders run (their features do not come from a cache).
    """
    w = value_bytes
    tokens = work.images * work.length(config)
    text = config.llava_config.text_config
    layer = _decoder_layer(config, tokens, w, True) if checkpointing else 0
    gradients = 2 * w * tokens * (text.intermediate_size + text.hidden_size)
    logits = work.num_targets * text.vocab_size * (2 * w + 2 * FLOAT) + _head_copy(config, w)
    encoder = work.images * _sam_encoder(config, w) if encode else 0
    return max(layer + gradients, logits, encoder)


def _decoder_layer(config: AuraConfig, tokens: int, w: int, on_gpu: bool) -> int:
    text = config.llava_config.text_config
    hidden, inner = text.hidden_size, text.intermediate_size
    head_dim = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    queries = text.num_attention_heads * head_dim  # keys and values are repeated to as many heads
    norms = 2 * (FLOAT * hidden + FLOAT)  # each its input in fp32, and the root
    attention = 4 * w * queries + FLOAT * text.num_attention_heads  # q, k, v, output; the scores' logarithms
    mlp = 3 * w * inner
    return tokens * (norms + attention + mlp + _adapters(config, w, on_gpu))


def _adapters(config: AuraConfig, w: int, on_gpu: bool) -> int:
    """Bytes per token and layer: each adapter's input, dropped out or shared with others, and its narrow middle."""
    if config.lora is None:
        return 0
    text = config.llava_config.text_config
    hidden, inner, targets = text.hidden_size, text.intermediate_size, config.lora["targets"]
    inputs = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), hidden)
    inputs |= {"o_proj": 0 if not config.lora["dropout"] else hidden, "down_proj": inner}
    total = w * config.lora["r"] * len(targets)
    if w < FLOAT:  # each fp32 adapter reads a copy of its own, from fp32 back to half precision
        inputs["o_proj"] = hidden
        dropped = 0 if not config.lora["dropout"] else 1 if on_gpu else FLOAT
        return total + sum(inputs[name] * (w + dropped) for name in targets)
    if config.lora["dropout"]:
        return total + sum(inputs[name] * (w + (1 if on_gpu else w)) for name in targets)
    attention, mlp = {"q_proj", "k_proj", "v_proj"} & set(targets), {"gate_proj", "up_proj"} & set(targets)
    shared = hidden * (bool(attention) + bool(mlp)) + inner * ("down_proj" in targets)
    return total + w * shared


def _around_the_layers(config: AuraConfig, work: Workload, w: int) -> int:
    """The final norm, the mask of the packed sequence, rotary tables, ids."""
    text = config.llava_config.text_config
    length = work.length(config)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = FLOAT * text.hidden_size + 2 * w * head_dim + 8 + 1
    return work.images * (length * per_token + w * length * length)


def _head_copy(config: AuraConfig, w: int) -> int:
    """The trained head in half precision, which its product uses in both directions."""
    text = config.llava_config.text_config
    return w * text.vocab_size * text.hidden_size if config.train_embeddings and w < FLOAT else 0


def _drawn(config: AuraConfig, heads: int) -> int:
    """Bytes of what is drawn of one object: masks, and the three classes of the map."""
    return FLOAT * (16 * _grid(config) * heads + 3 * map_cells(config) * config.spatial_occlusion)


def _grid(config: AuraConfig) -> int:
    """P."""
    return config.sam_config.prompt_encoder_config.image_embedding_size**2


def map_cells(config: AuraConfig) -> int:
    """Cells of E_SO's map: those of the mask decoder's output, or of SAM's input."""
    finer = IMAGE_SIDES**2 if config.spatial_form == "image" else 1
    return 16 * _grid(config) * finer


def _mask_decoder(config: AuraConfig) -> int:
    """Bytes per object of one mask decoder, all of whose layers are trained.

    In units of one image-sized map (P C values). Each two-way block: keys with positions, for its attention twice; keys
    alone; the output's norm; and in each direction half-width queries or keys, values or outputs: 6. The last one: 3.
    Upscaling: a norm and a GELU at twice the side with a quarter of the channels, a GELU and the product with the mask
    token at four times the side with an eighth: 1 + 1 + 1 + 2 + 2.
    """
    sam = config.sam_config.mask_decoder_config
    channels, layers = sam.hidden_size, sam.num_hidden_layers
    share = 1 / sam.attention_downsample_rate
    maps = layers * (4 + 4 * share) + 2 + 2 * share + 7
    tokens = 1 + (sam.num_multimask_outputs + 1) + 1  # quality, masks, the prompt (of E_OC's form "token": two)
    small = tokens * (layers * (15 * channels + sam.mlp_dim) + 4 * channels) + 16 * channels
    return int(FLOAT * (maps * _grid(config) * channels + small))


def _occlusion(config: AuraConfig) -> int:
    """Bytes per object: projection, E_OC and E_SO."""
    hidden, channels = config.llava_config.text_config.hidden_size, config.prompt_hidden_size
    total = 2 * hidden
    if config.occlusion_condition:
        total += 4 * channels
    if config.spatial_occlusion:
        # Four maps of 16 channels, two probabilities, two arguments of logarithms.
        total += (4 * 16 + 2 + 2) * map_cells(config)
    return FLOAT * total


def _mask_losses(config: AuraConfig, work: Workload, heads: int, resolution: Literal["image", "decoder"]) -> int:
    """Bytes per object. Logits come as a view of all four of SAM's masks."""
    three = config.spatial_occlusion
    if resolution == "image":
        # Each mask: logits, target twice, probability. The map: log-probabilities, and classes in 64 bits.
        return work.height * work.width * (heads * 4 * FLOAT + three * (3 * FLOAT + 8))
    num_masks = config.sam_config.mask_decoder_config.num_multimask_outputs + 1
    return 16 * _grid(config) * heads * (num_masks + 3) * FLOAT + map_cells(config) * three * 6 * FLOAT


def _sam_encoder(config: AuraConfig, w: int) -> int:
    """Bytes for one image without gradient: a global layer's tile of relative positions and their terms; some maps."""
    vision = config.sam_config.vision_config
    if has_tiny_vit(
        config.sam_config
    ):  # its first stage: a widened map at a quarter of the side, before and after GELU
        return int(w * 3 * EXPANSION * vision.widths[0] * (vision.image_size // 4) ** 2)
    positions = (vision.image_size // vision.patch_size) ** 2
    heads, side = vision.num_attention_heads, vision.image_size // vision.patch_size
    tile = min(2 * w * heads * positions**2, TILE_BYTES)
    return tile + w * positions * (2 * heads * side + 10 * vision.hidden_size + vision.mlp_dim)


def features_bytes(config: AuraConfig) -> int:
    """Bytes of one image's frozen features in the cache, in fp16."""
    layers: Any = config.llava_config.vision_feature_layer
    clip = config.llava_config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    channels = config.sam_config.vision_config.output_channels
    return 2 * (channels * _grid(config) + config.num_image_tokens * config.image_token_merge**2 * clip)
