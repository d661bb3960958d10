"""Every shipped YAML parses; the 7B one states the defaults, which are the paper's recipe."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml

from aura.config import (
    ConditionForm,
    Config,
    DataSettings,
    ModelSettings,
    SpatialForm,
    SplitSettings,
    load_config,
    parse_config,
)

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

MLLMS, SAMS, MEMORY = ([None, *sorted(CONFIGS.glob(f"{folder}/*.yaml"))] for folder in ("mllm", "sam", "memory"))
# configs/datagen/ holds settings of another program, which its own tests parse.
TRAINING = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "datagen")
VARIANTS = [None, *sorted(CONFIGS.glob("ablation/*.yaml")), *sorted(CONFIGS.glob("baselines/*.yaml"))]
FORMS = sorted(CONFIGS.glob("forms/*.yaml"))


def over(base: str, *paths: Path | None) -> Config:
    return load_config(CONFIGS / base, *(path for path in paths if path is not None))


@pytest.mark.parametrize("base", ["aura_7b.yaml", "mini.yaml"])
@pytest.mark.parametrize("path", TRAINING, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_parses(path, base):
    assert isinstance(parse_config([f"--config={CONFIGS / base}", f"--config={path}"]), Config)


def test_every_folder_has_its_presets():
    names = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*/*.yaml")}
    assert names >= {
        *("mllm/13b", "mllm/llama2_13b", "mllm/llava15_7b", "sam/vit_b", "sam/vit_l"),
        *("ablation/baseline", "ablation/only_condition", "ablation/only_spatial", "ablation/no_lora"),
        *("baselines/lisa_visible", "baselines/lisa_amodal"),
        *("memory/qlora_24gb", "memory/offload", "memory/one_gpu"),
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda p: p.stem if p else "whole")
def test_layers_combine_and_none_undoes_another(variant):
    """Each layer changes the same settings to the same values wherever it stands, and leaves the rest alone."""
    alone = changes(over("aura_7b.yaml", variant))
    for number, mllm in enumerate(MLLMS):
        sam, memory = SAMS[number % len(SAMS)], MEMORY[(number + 1) % len(MEMORY)]
        others = changes(over("aura_7b.yaml", mllm, sam, memory))
        assert changes(over("aura_7b.yaml", mllm, sam, variant, memory)) == {**alone, **others}


def test_the_variants_are_what_they_are_called():
    def model(name: str) -> tuple[bool, bool, bool, str]:
        found = over("aura_7b.yaml", CONFIGS / name).model
        return found.occlusion_condition, found.spatial_occlusion, found.lora.enabled, found.masks

    assert model("aura_7b.yaml") == (True, True, True, "both")
    assert model("ablation/baseline.yaml") == (False, False, True, "both")
    assert model("ablation/only_condition.yaml") == (True, False, True, "both")
    assert model("ablation/only_spatial.yaml") == (False, True, True, "both")
    assert model("ablation/no_lora.yaml") == (True, True, False, "both")
    assert model("baselines/lisa_visible.yaml") == (False, False, True, "visible")
    assert model("baselines/lisa_amodal.yaml") == (False, False, True, "amodal")
    for kind in ("visible", "amodal"):
        lisa = over("aura_7b.yaml", CONFIGS / "baselines" / f"lisa_{kind}.yaml")
        assert lisa.data.objects_per_answer == "first"
    assert over("aura_7b.yaml", CONFIGS / "ablation" / "baseline.yaml").data.objects_per_answer == "all"


def test_there_is_a_layer_for_every_form_but_the_present_one():
    names = {"condition": ConditionForm, "spatial": SpatialForm}
    wanted = {f"{name}_{form}" for name, forms in names.items() for form in get_args(forms)}
    present = over("aura_7b.yaml").model
    assert {path.stem for path in FORMS} == wanted - {
        f"condition_{present.condition_form}",
        f"spatial_{present.spatial_form}",
    }
    for path in FORMS:
        name, form = path.stem.split("_")
        assert changes(over("aura_7b.yaml", path)) == {f"model.{name}_form": form}


def test_the_paper_s_recipe():
    """Section 5.1: two V100 (no bf16) with 1 image each, 4 accumulations, 5000 steps, 100 of warm-up, lr 1e-3."""
    train = load_config(CONFIGS / "aura_7b.yaml").train
    assert (train.precision, train.zero_stage, train.micro_batch_size, train.accumulation) == ("fp16", 2, 1, 4)
    assert (train.steps, train.warmup_steps, train.lr) == (5000, 100, 1e-3)
    for name in ("13b", "llama2_13b", "llava15_7b"):
        assert over("aura_7b.yaml", CONFIGS / "mllm" / f"{name}.yaml").train.precision == "bf16"


@pytest.mark.parametrize("name", ["one_gpu", "qlora_24gb"])
def test_one_gpu_takes_the_steps_of_two(name):
    two, one = over("aura_7b.yaml").train, over("aura_7b.yaml", CONFIGS / "memory" / f"{name}.yaml").train
    assert one.micro_batch_size * one.accumulation == 2 * two.micro_batch_size * two.accumulation


def test_the_sweep_s_mini_run_is_a_shorter_mini_run():
    mini, sweep = over("mini.yaml"), over("mini.yaml", CONFIGS / "sweep_mini.yaml")
    assert (sweep.model, sweep.data, sweep.loss) == (mini.model, mini.data, mini.loss)
    assert (
        sweep.data.feature_cache and 200 <= sweep.train.steps <= 500 and sweep.train.output_dir != mini.train.output_dir
    )
    shared = {"steps", "warmup_steps", "output_dir", "validate_every", "checkpoint_every", "keep_last", "tensorboard"}
    ours, theirs = vars(sweep.train), vars(mini.train)
    assert {key for key in ours if ours[key] != theirs[key]} <= shared
    full = over("mini.yaml", CONFIGS / "sweep_mini.yaml", CONFIGS / "sweep_mini_full.yaml").train
    assert (full.steps, full.warmup_steps, full.lr) == (mini.train.steps, mini.train.warmup_steps, mini.train.lr)
    assert full.output_dir == sweep.train.output_dir


def changes(config: Config) -> dict[str, object]:
    """What differs from the base, by dotted key."""
    base, found = over("aura_7b.yaml"), {}
    for section in ("model", "data", "loss", "train"):
        before, after = vars(getattr(base, section)), vars(getattr(config, section))
        found |= {f"{section}.{key}": value for key, value in after.items() if value != before[key]}
    return found


def test_the_7b_file_states_the_defaults():
    config = load_config(CONFIGS / "aura_7b.yaml")
    without_paths = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, mllm=None, vision_tower=None, sam=None),
        data=dataclasses.replace(config.data, train=SplitSettings()),
    )
    assert without_paths == Config(model=ModelSettings(), data=DataSettings())


def test_the_7b_file_names_every_setting():

    stated = yaml.safe_load((CONFIGS / "aura_7b.yaml").read_text())
    for section in ("model", "data", "loss", "train"):
        names = {f.name for f in dataclasses.fields(type(getattr(Config(), section)))}
        assert set(stated[section]) == names, section


def test_the_mini_run_is_the_paper_s_recipe_at_laptop_size():
    mini, paper = load_config(CONFIGS / "mini.yaml"), Config()
    lora = paper.model.lora
    same = {"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout, "targets": lora.targets}
    assert dataclasses.replace(mini.model.lora, **same) == lora
    assert mini.model.train_embeddings and mini.model.seg_state == paper.model.seg_state
    assert dataclasses.replace(mini.loss, mask_resolution=paper.loss.mask_resolution) == paper.loss
    assert mini.model.occlusion_condition and mini.model.spatial_occlusion
    assert mini.train.precision == "fp32"


def test_demo_quick_is_a_layer_over_mini():
    quick = parse_config([f"--config={CONFIGS / name}" for name in ("mini.yaml", "demo_quick.yaml")])
    mini = load_config(CONFIGS / "mini.yaml")
    assert quick.model == mini.model and quick.loss == mini.loss
    assert quick.train.steps <= 20 and quick.train.output_dir != mini.train.output_dir
