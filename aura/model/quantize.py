"""How the language model's frozen linear layers are held in 8 or 4 bits (bitsandbytes).

Everything else keeps its precision: adapters, embeddings, head, projector, CLIP, SAM and the occlusion modules. Blank
masks are what quantising all of a model of this kind is known for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BitsAndBytesConfig

Quantization = Literal["none", "int8", "int4"]

INSTALL = "pip install bitsandbytes"

KEPT = (
    "mllm.vision_tower",
    "mllm.projector",
    "mllm.lm_head",
    "image_encoder",
    "prompt_encoder",
    "visible_decoder",
    "amodal_decoder",
    "occlusion_condition",
    "spatial_occlusion",
    r".*\.lora_[AB]",
)
"""Modules of an ``AuraModel`` whose linear layers stay as they are; names, or patterns from the name's start."""


def quantization_config(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What ``AuraModel.from_pretrained(..., quantization_config=)`` takes; ``None`` for ``none``.

    Args:
        kind: ``int8`` is LLM.int8(); ``int4`` is QLoRA's NF4 with double quantisation.
        dtype: In which the 4-bit layers compute.
    """
    check_kind(kind)
    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(KEPT),
    )


def check_kind(kind: str) -> None:
    """ValueError for anything but ``none``, ``int8`` and ``int4``."""
    if kind not in ("none", "int8", "int4"):
        raise ValueError(f"quantize must be none, int8 or int4, got {kind!r}")


def check_quantization(kind: str, device: torch.device | str | None = None) -> torch.device:
    """The device to quantise on, found before minutes are spent on loading.

    Args:
        kind: ``int8`` or ``int4`` (``none`` needs nothing).
        device: Where the model will run; without, the current GPU if there is one, else the CPU.

    Raises:
        ValueError: bitsandbytes is not installed or does not work here, or does not know the device.
    """
    check_kind(kind)
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if kind == "none":
        return device
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantize {kind} needs bitsandbytes, which is not installed; {INSTALL}, or set quantize: none"
        )
    try:
        import bitsandbytes
    except Exception as error:  # a build for another CUDA fails in ways of its own
        raise ValueError(
            f"quantize {kind} needs bitsandbytes, which does not load here ({_first_line(error)}); "
            f"{INSTALL} --upgrade, or set quantize: none"
        ) from error
    known = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    if device.type not in known:
        raise ValueError(
            f"bitsandbytes {bitsandbytes.__version__} does not support {device.type} (it knows "
            f"{', '.join(sorted(known))}); {INSTALL} --upgrade, choose another device, or set quantize: none"
        )
    # LLM.int8() multiplies on int8 tensor cores, which came with Turing; NF4 runs on any GPU that torch supports.
    if kind == "int8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 5):
        raise ValueError(
            f"quantize int8 needs a GPU of compute capability 7.5, and {torch.cuda.get_device_name(device)} is older; "
            "int4 works on it"
        )
    return device


def quantize_linears(language_model: Any, kind: Quantization, dtype: torch.dtype, device: torch.device) -> None:
    """Replace every linear layer inside the decoder layers, one by one and in place. The new ones lie on ``device``.

    The state dictionary afterwards holds the packed weights under their old names and nothing else;
    :func:`unpacked` gives the numbers they stand for.

    Args:
        language_model: A decoder without adapters.
        kind: ``int8`` or ``int4``.
        dtype: In which 4-bit layers compute.
        device: Checked by :func:`check_quantization`.
    """
    import bitsandbytes as bnb
    from transformers.integrations import replace_with_bnb_linear

    config = quantization_config(kind, dtype)
    parameter_kind: Any = bnb.nn.Int8Params if kind == "int8" else bnb.nn.Params4bit
    for layer in language_model.layers:
        weights = {name: module.weight.data for name, module in layer.named_modules() if type(module) is nn.Linear}
        replace_with_bnb_linear(layer, [], config)
        for name in list(weights):
            module: Any = layer.get_submodule(name)
            assert module.bias is None, f"{name} has a bias, which Llama's layers do not have"
            settings = {key: value for key, value in vars(module.weight).items() if key not in ("SCB", "CB")}
            packed = parameter_kind(weights.pop(name).to("cpu"), requires_grad=False, **settings).to(device)
            module.weight = packed
            # Evaluation on a CPU with bf16 units would repack the weights and round their scales: validating a run
            # would change it.
            module.support_avx512bf16_for_cpu = False
            module.register_state_dict_post_hook(_only_the_weight)
    check_kernels(language_model)
    setattr(language_model, f"is_loaded_in_{kind.removeprefix('int')}bit", True)  # tells peft which adapters fit


def _only_the_weight(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    # The scales go with the packed weights, which are frozen: checkpoints leave both out.
    for key in [key for key in state if key.startswith((f"{prefix}weight.", f"{prefix}SCB", f"{prefix}weight_format"))]:
        del state[key]


def quantized_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of the quantised layers of any model."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes.") and isinstance(module, nn.Linear):
            yield name, module


def check_kernels(model: nn.Module) -> None:
    """Refuse what bitsandbytes computes wrongly without a word (0.50.2): 4-bit rows on a CPU that end inside a block.

    Raises:
        ValueError: Such a layer.
    """
    for name, module in quantized_linears(model):
        state = getattr(module.weight, "quant_state", None)
        if state is not None and module.weight.device.type == "cpu" and module.in_features % state.blocksize:
            raise ValueError(
                f"quantize int4: on a CPU, bitsandbytes is wrong for layers whose width is no multiple of "
                f"{state.blocksize}, and {name} has {module.in_features}; int8 works"
            )


def unpacked(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights that the quantised layers stand for, by their names in the state dictionary, on the CPU.

    Empty for a model without quantised layers.
    """
    return {f"{name}.weight": _unpack(module).to("cpu", dtype) for name, module in quantized_linears(model)}


def _unpack(module: Any) -> torch.Tensor:
    import bitsandbytes as bnb

    weight = module.weight
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    scales = weight.SCB if weight.SCB is not None else module.state.SCB
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cast_as_it_runs(part: nn.Module) -> None:
    """Compute in fp32 with weights that stay in bf16, which halves the memory where a CPU knows no bf16.

    Embeddings come out in fp32. Each linear layer of ``part`` casts its own weight while it runs. Other layers are left
    as they are.
    """

    def linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), module.weight.float(), module.bias)

    for module in part.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16:
            module.forward = linear.__get__(module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda module, inputs, output: output.float())
