"""Every shipped YAML parses; the 7B one states the defaults, which are the paper's recipe."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from aura.config import Config, DataSettings, ModelSettings, SplitSettings, load_config, parse_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_parses(path):
    assert isinstance(parse_config([f"--config={CONFIGS / 'mini.yaml'}", f"--config={path}"]), Config)


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
