"""Layers, overrides and the one-line errors of the configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aura.config import Config, SourceSettings, load_config, parse_config, to_yaml


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_later_layers_and_overrides_win_and_the_rest_is_kept(tmp_path):
    first = write(tmp_path / "a.yaml", "train: {lr: 0.1, steps: 900}\nmodel: {lora: {r: 4}}\n")
    second = write(tmp_path / "b.yaml", "train: {steps: 700}\n")
    config = parse_config(
        ["--config", first, "--config", second, "--train.betas", "[0.8,0.9]", "--data.conversations_per_image", "null"]
    )
    assert (config.train.lr, config.train.steps, config.train.betas) == (0.1, 700, (0.8, 0.9))
    assert (config.model.lora.r, config.model.lora.alpha) == (4, 16)
    assert config.data.conversations_per_image is None
    assert config.loss == Config().loss


def test_yaml_round_trip_is_equal(tmp_path):
    config = parse_config(["--train.lr", "3e-4", "--model.lora.targets", "[q_proj,k_proj]", "--data.val.images", "x"])
    assert load_config(write(tmp_path / "resolved.yaml", to_yaml(config))) == config


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--train.foo", "3"], "train.foo"),
        (["--train.steps", "many"], "train.steps"),
        (["--loss.mask_resolution", "huge"], "loss.mask_resolution"),
        (["--train.warmup_steps", "6000"], "train.warmup_steps"),
        (["--model.lora.dropout", "1.5"], "model.lora.dropout"),
        (["--model.lora.targets", "[]"], "model.lora.targets"),
        (["--loss.text", "-1"], "loss.text"),
        (["--train.betas", "[0.9,1.0]"], "train.betas"),
        (["--train.seed", "-1"], "train.seed"),
        (["--train.validate_images", "0"], "train.validate_images"),
        (["--train.offload_optimizer", "true", "--train.zero_stage", "0"], "train.zero_stage"),
        (["--config"], "--config"),
        (["--model.masks", "amodal"], "model.spatial_occlusion"),
        (["--model.masks", "visible", "--model.spatial_occlusion", "false"], "model.occlusion_condition"),
        (
            ["--model.masks=visible", "--model.spatial_occlusion=false", "--model.occlusion_condition=false"],
            "train.best_metric",
        ),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_code_2(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert named in message
    assert message.count("\n") == 1


def test_a_validation_split_left_over_from_other_data_is_refused(tmp_path, capsys):
    base = write(tmp_path / "base.yaml", "data: {train: {annotations: a.json}, val: {annotations: b.json}}\n")
    own = write(tmp_path / "own.yaml", "data: {train: {annotations: c.json}}\n")
    for later in (["--config", own], ["--data.train.annotations=c.json"], ["--data.train.annotations", "c.json"]):
        with pytest.raises(SystemExit):
            parse_config(["--config", base, *later])
        assert re.search(r"data\.val\.annotations \(b\.json\) is left over from .*base\.yaml", capsys.readouterr().err)
        for mended in ("null", "d.json"):
            found = parse_config(["--config", base, *later, "--data.val.annotations", mended]).data
            assert (found.train.annotations, found.val.annotations) == ("c.json", None if mended == "null" else mended)
    first = parse_config(["--data.val.annotations", "d.json", "--data.train.annotations", "c.json"]).data
    assert first.val.annotations == "d.json"
    assert parse_config(["--config", own, "--config", base]).data.train.annotations == "a.json"


def test_a_list_of_sources_takes_the_place_of_one_file_and_the_other_way_round(tmp_path, capsys):
    one = write(tmp_path / "one.yaml", "data: {train: {annotations: a.json, images: photos}}\n")
    several = write(
        tmp_path / "several.yaml", "data: {train: [{annotations: b.json, weight: 3}, {annotations: c.json}]}\n"
    )
    config = parse_config(["--config", one, "--config", several])
    assert config.data.train.annotations is None and config.data.train.images is None
    assert config.data.train.sources == (SourceSettings("b.json", None, 3.0), SourceSettings("c.json", None, 1.0))
    assert list(config.data.files()) == ["train[0]", "train[1]"]
    assert load_config(write(tmp_path / "resolved.yaml", to_yaml(config))) == config
    again = parse_config(["--config", several, "--config", one]).data
    assert (again.train.annotations, again.train.sources) == ("a.json", ()) and list(again.files()) == ["train"]
    listed = ["--data.train.sources", '[{"annotations": "q.json", "weight": 1e-1}]']
    assert parse_config(listed).data.train.sources == (SourceSettings("q.json", None, 0.1),)
    val = write(tmp_path / "val.yaml", "data: {val: {annotations: v.json}}\n")
    for wrong, named in (
        (["--config", several, "--data.train.annotations", "x.json"], "one file (x.json) and a list of 2 sources"),
        (["--config", write(tmp_path / "d.yaml", "data: {train: [{annotation: d.json}]}")], "annotation"),
        (["--data.train.sources", '[{"annotations": "q.json", "weight": 0}]'], "weight of q.json must be positive"),
        (["--data.train.sources", '[{"annotations": "q.json"}, {"annotations": "q.json"}]'], "a file twice"),
        (["--data.val.sources", '[{"annotations": "q.json"}, {"annotations": "q.json"}]'], "data.val lists a file"),
        (["--config", val, "--config", several], "data.val.annotations (v.json) is left over"),
    ):
        with pytest.raises(SystemExit):
            parse_config(wrong)
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1


def test_a_list_to_validate_on_stands_like_one_to_train_on(tmp_path, capsys):
    text = "data: {train: {annotations: a.json}, val: [{annotations: b.json, weight: 3}]}\n"
    own = write(tmp_path / "own.yaml", text)
    data = parse_config(["--config", own]).data
    assert data.val.sources == (SourceSettings("b.json", None, 3.0),) and data.val.annotations is None
    assert list(data.val_files()) == ["val[0]"] and list(data.files()) == ["train"]
    assert load_config(write(tmp_path / "resolved.yaml", to_yaml(parse_config(["--config", own])))).data == data
    one = write(tmp_path / "one.yaml", "data: {val: {annotations: c.json}}\n")
    assert list(parse_config(["--config", own, "--config", one]).data.val_files()) == ["val"]
    none = parse_config(["--config", own, "--config", write(tmp_path / "0.yaml", "data: {val: {annotations: null}}\n")])
    assert none.data.val_files() == {} and none.data.val.sources == ()
    other = ["--config", own, "--data.train.annotations", "d.json"]
    with pytest.raises(SystemExit):
        parse_config(other)
    assert "data.val.annotations (b.json) is left over" in capsys.readouterr().err
    assert parse_config([*other, "--data.val.sources", "[]"]).data.val_files() == {}
    given = parse_config([*other, "--data.val.sources", '[{"annotations": "e.json"}]']).data
    assert [source.annotations for source in given.val.sources] == ["e.json"]


def test_load_config_puts_layers_over_each_other(tmp_path):
    first = write(tmp_path / "a.yaml", "train: {lr: 0.1, steps: 900}\n")
    second = write(tmp_path / "b.yaml", "train: {steps: 700}\n")
    config = load_config(first, second)
    assert (config.train.lr, config.train.steps) == (0.1, 700)
    with pytest.raises(ValueError, match=r"a\.yaml \+ .*c\.yaml"):
        load_config(first, str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {lrr: 1}", "lrr"),
        ("trian: {lr: 1}", "trian"),
        ("a: [", r"bad\.yaml is not YAML"),
        ("", r"bad\.yaml: the file must hold settings"),
        ("train: 5", r"bad\.yaml: train must hold settings, .*not 5"),
        ("model: {lora: [q_proj]}", r"bad\.yaml: model\.lora must hold settings"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_key(tmp_path, text, named, capsys):
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=named) as error:
        load_config(path)
    assert path in str(error.value)
    with pytest.raises(SystemExit):
        parse_config(["--config", path])
    assert re.search(named, capsys.readouterr().err)


def test_print_config_shows_the_resolved_yaml(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--train.lr", "0.5", "--print_config"])
    assert stop.value.code == 0
    assert load_config(write(tmp_path / "printed.yaml", capsys.readouterr().out)).train.lr == 0.5


def test_the_launchers_local_rank_is_accepted_and_hidden(capsys):
    assert parse_config(["--local_rank=1"]) == Config()
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = capsys.readouterr().out
    assert "local_rank" not in text
    assert "Peak learning rate" in text


def test_reading_a_config_needs_no_torch():
    code = "import sys, aura.config, aura.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
