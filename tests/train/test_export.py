"""``scripts/export.py``: what a tiny run trained, its checkpoint's folder gives back bit for bit."""

import copy
import dataclasses
import json
import os
import pickle
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

from aura.chat.assistant import Assistant
from aura.config import Config, DataSettings, ModelSettings, TrainSettings
from aura.data.collate import collate
from aura.data.processor import Processor
from aura.masks import encode_rle
from aura.model import AuraModel
from aura.train.checkpoint import replaced_folder
from aura.train.engine import start_process, trained_weights
from aura.train.export import choose_checkpoint, read_trained
from aura.train.trainer import Trainer
from aura.types import AmodalObject, Conversation, Sample, Turn
from aura.weights.build import build_model

SIZE = 32
MAIN = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export.py"))["main"]


@pytest.fixture
def samples(tmp_path):
    made = []
    for number in range(2):
        Image.fromarray(np.full((SIZE, SIZE, 3), 90 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[4 + number : 20, 8:24] = True
        thing = AmodalObject(1, "thing", encode_rle(mask), encode_rle(mask), 0.0)
        turn = Turn("What is it?", "The thing [SEG].", (1,))
        made.append(Sample(number, tmp_path / f"{number}.png", SIZE, SIZE, (thing,), (Conversation(number, (turn,)),)))
    return made


@pytest.fixture
def config(tiny_llava_dir, tiny_sam_dir, tmp_path):
    return Config(
        model=ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir),
        data=DataSettings(conversations_per_image=1, num_workers=0, feature_cache=None),
        train=TrainSettings(
            output_dir=str(tmp_path / "run"),
            **{"steps": 4, "warmup_steps": 1, "accumulation": 1, "precision": "fp32", "zero_stage": 0, "lr": 0.02},
            **{"gradient_checkpointing": False, "tensorboard": False, "checkpoint_every": 3, "validate_images": 1},
        ),
    )


@pytest.fixture
def train(config, samples):
    """``train(stage)`` -> the trained model, as it was used; its run folder is ``tmp_path/run``."""

    def run(stage=0, validate_every=0, **model):
        settings = dataclasses.replace(config.train, zero_stage=stage, validate_every=validate_every)
        changed = dataclasses.replace(config, train=settings, model=dataclasses.replace(config.model, **model))
        process = start_process(settings)
        torch.manual_seed(settings.seed)
        trainer = Trainer(changed, *build_model(changed.model, changed.data)[:2], samples, samples[:1], process)
        assert trainer.run() == 0
        if stage == 3:  # the live model is in pieces; what the trainer itself gathered is whole
            return AuraModel.from_pretrained(Path(settings.output_dir) / "export").eval()
        return copy.deepcopy(trainer.engine.module).eval()

    return run


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def answers(model, folder, samples):
    processor = Processor.from_pretrained(folder)
    batch = collate([processor(sample) for sample in samples])
    with torch.no_grad():
        output = model(batch)
    return {name: value for name, value in output.items() if value is not None}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_both_kinds_of_export_answer_as_the_trained_model(train, run, out, samples, stage):
    trained = train(stage)
    assert any(p.any() for name, p in trained.named_parameters() if "lora_B" in name)
    assert MAIN([str(run), "--out", str(out / "kept"), "--keep-lora", "--checkpoint", "last"]) == 0
    kept = AuraModel.from_pretrained(out / "kept").eval()
    assert kept.config.lora == trained.config.lora
    assert_equal(kept.state_dict(), trained.state_dict())
    assert_equal(answers(kept, out / "kept", samples), answers(trained, out / "kept", samples))

    assert MAIN([str(run), "--out", str(out / "merged")]) == 0
    before = answers(trained, out / "merged", samples)
    trained.merge_lora()
    merged, info = AuraModel.from_pretrained(out / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and merged.config.lora is None
    after = answers(merged.eval(), out / "merged", samples)
    assert_equal(after, answers(trained, out / "merged", samples))
    torch.testing.assert_close(after["amodal_logits"], before["amodal_logits"], rtol=1e-3, atol=1e-3)
    assert Assistant.from_pretrained(out / "merged", "cpu").ask(str(samples[0].image_path), "What?").text is not None


def test_peft_reads_the_adapters(train, run, out, config):
    trained = train()
    assert MAIN([str(run), "--out", str(out), "--keep-lora"]) == 0
    plain = dataclasses.replace(config.model, lora=dataclasses.replace(config.model.lora, enabled=False))
    torch.manual_seed(config.train.seed)
    base = build_model(plain, config.data)[0].mllm.language_model
    inputs = {"inputs_embeds": torch.randn(1, 5, 32)}
    with torch.no_grad():
        expected = trained.mllm.language_model(**inputs).last_hidden_state
        assert not torch.equal(base.eval()(**inputs).last_hidden_state, expected)
        adapted = PeftModel.from_pretrained(base, str(out / "adapter")).eval()
        assert torch.equal(adapted(**inputs).last_hidden_state, expected)


def test_best_last_and_paths(train, run, out):
    train(validate_every=3)
    best = json.loads((run / "report.json").read_text())["best"]["step"]
    assert choose_checkpoint(run, "best").step == best
    assert choose_checkpoint(run, "last").step == 4
    assert choose_checkpoint(run, str(run / "checkpoints" / "step_000003")).step == 3
    assert MAIN([str(run), "--out", str(out), "--checkpoint", str(run / "checkpoints" / "step_000003")]) == 0
    card = (out / "README.md").read_text()
    assert "| optimizer step | 3 of 4 |" in card
    record = next(json.loads(r) for r in (run / "log.jsonl").read_text().splitlines() if '"val", "step": 3' in r)
    assert f"| {100 * record['amodal']['giou_object']:.2f} |" in card and "teacher_forced" in card
    assert str(run.parent) not in card
    exported = load_file(out / "model.safetensors")
    stored = trained_weights(run / "checkpoints" / "step_000003")
    assert torch.equal(exported["mllm.lm_head.weight"], stored["mllm.lm_head.weight"])


def test_consolidated_weights_in_every_form(train, run, out, tmp_path, capsys):
    trained = train()
    weights = trained_weights(run / "checkpoints" / "step_000004")
    forms = [tmp_path / "w.safetensors", tmp_path / "pytorch_model.bin", tmp_path / "folder", tmp_path / "shards"]
    save_file({name: value.contiguous() for name, value in weights.items()}, forms[0])
    torch.save(weights, forms[1])
    for folder in forms[2:]:
        folder.mkdir()
    shutil.copy(forms[1], forms[2])
    names, half = list(weights), len(weights) // 2
    for number, part in enumerate((names[:half], names[half:])):
        torch.save({name: weights[name] for name in part}, forms[3] / f"pytorch_model-{number}.bin")
    index = {name: f"pytorch_model-{int(i >= half)}.bin" for i, name in enumerate(names)}
    (forms[3] / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    for form in forms:
        assert_equal(read_trained(form), weights)
    assert MAIN([str(run), "--out", str(out), "--keep-lora", "--checkpoint", str(forms[3])]) == 0
    assert "not checked" in capsys.readouterr().out
    assert_equal(AuraModel.from_pretrained(out).state_dict(), trained.state_dict())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_rounded_once_and_spares_the_masks(train, run, out, samples, dtype):
    trained = train(2)
    assert MAIN([str(run), "--out", str(out), "--dtype", dtype]) == 0
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    exported = load_file(out / "model.safetensors")
    layer = trained.mllm.language_model.layers[0].self_attn.q_proj
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    stored = exported["mllm.language_model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(stored, (layer.base_layer.weight + update).to(half))
    assert torch.equal(exported["mllm.lm_head.weight"], trained.mllm.lm_head.weight.to(half))
    assert all(value.dtype == torch.float32 for name, value in exported.items() if not name.startswith("mllm."))
    loaded = AuraModel.from_pretrained(out).eval()  # without a dtype, as anybody would
    assert {p.dtype for p in loaded.mllm.parameters()} == {half}
    assert {p.dtype for name, p in loaded.named_parameters() if not name.startswith("mllm.")} == {torch.float32}
    assert all(value.isfinite().all() for value in answers(loaded, out, samples).values())


def test_shards(train, run, out):
    trained = train()
    assert MAIN([str(run), "--out", str(out), "--keep-lora", "--shard-size", "60KB"]) == 0
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert_equal(AuraModel.from_pretrained(out).state_dict(), trained.state_dict())
    with pytest.raises(SystemExit):
        MAIN([str(run), "--out", str(out), "--shard-size", "much"])


def test_existing_folders_are_safe(train, run, out, monkeypatch, capsys):
    train()
    out.mkdir()
    (out / "thesis.tex").touch()
    assert MAIN([str(run), "--out", str(out), "--force"]) == 2
    assert "is not an export of AURA" in capsys.readouterr().err
    (out / "thesis.tex").unlink()
    assert MAIN([str(run), "--out", str(out), "--force"]) == 0
    assert MAIN([str(run), "--out", str(out)]) == 2
    assert "replace it with --force" in capsys.readouterr().err
    before = (out / "model.safetensors").stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(Processor, "save_pretrained", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            MAIN([str(run), "--out", str(out), "--force"])
        with pytest.raises(KeyboardInterrupt):
            MAIN([str(run), "--out", str(out / "new")])
    assert (out / "model.safetensors").stat().st_ino == before
    assert not (out / "new").exists() and not list(out.parent.glob(".out.*"))
    assert MAIN([str(run), "--out", str(out), "--force"]) == 0
    assert (out / "model.safetensors").stat().st_ino != before


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    (tmp_path / ".x.old").mkdir()
    (tmp_path / ".x.old" / "weights").touch()
    with pytest.raises(KeyError), replaced_folder(tmp_path / "x"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "weights").is_file()


class Stranger:
    def __reduce__(self):
        return os.mkdir, ("harm",)


DAMAGE = {
    "cut": (lambda c: (f := next(c.glob("*optim_states.pt"))).write_bytes(f.read_bytes()[:999]), "optim_states.pt is"),
    "missing": (lambda c: next(c.glob("*optim_states.pt")).unlink(), "optim_states.pt is damaged"),
    "cut, no state": (
        lambda c: [
            (c / "state.json").unlink(),
            (f := c / "mp_rank_00_model_states.pt").write_bytes(f.read_bytes()[:99]),
        ],
        "mp_rank_00_model_states.pt is damaged or cut off",
    ),
    "missing, no state": (
        lambda c: [(c / "state.json").unlink(), (c / "mp_rank_00_model_states.pt").unlink()],
        "is not a complete DeepSpeed checkpoint",
    ),
    "code": (
        lambda c: [(c / "state.json").unlink(), torch.save(Stranger(), c / "mp_rank_00_model_states.pt")],
        "which could run code",
    ),
    "nothing": (lambda c: [f.unlink() for f in c.iterdir()], "holds no weights"),
}


def test_damaged_checkpoints_name_the_file(train, run, out, capsys, tmp_path, monkeypatch):
    train(2)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    for name, (damage, expected) in DAMAGE.items():
        copied = tmp_path / name.replace(" ", "_")
        shutil.copytree(run / "checkpoints" / "step_000004", copied)
        damage(copied)
        assert MAIN([str(run), "--out", str(out), "--checkpoint", str(copied)]) == 2, name
        error = capsys.readouterr().err
        assert expected in error and str(copied) in error and error.count("\n") == 1, name
    assert not out.exists() and not (tmp_path / "harm").exists()


def test_a_rank_too_few_is_said(train, run, out, capsys):
    train(2)
    folder = run / "checkpoints" / "step_000004"
    (folder / "state.json").unlink()
    file = next(folder.glob("*optim_states.pt"))
    content = torch.load(file, weights_only=False)
    content["optimizer_state_dict"]["partition_count"] = [2]
    torch.save(content, file)
    assert MAIN([str(run), "--out", str(out), "--checkpoint", str(folder)]) == 2
    assert "needs the files of every process" in (error := capsys.readouterr().err) and "Expected 2" in error


def test_frozen_weights_must_be_those_of_the_run(train, run, out, capsys, tiny_sam_dir, samples):
    trained = train()
    weights = Path(tiny_sam_dir) / "model.safetensors"
    original = load_file(weights)
    save_file({name: value + 1 for name, value in original.items()}, weights, metadata={"format": "pt"})
    assert MAIN([str(run), "--out", str(out)]) == 2
    assert "was trained on other frozen weights" in capsys.readouterr().err
    shutil.rmtree(tiny_sam_dir)
    assert MAIN([str(run), "--out", str(out)]) == 2
    assert "--frozen-from RUN/export" in capsys.readouterr().err
    assert MAIN([str(run), "--out", str(out), "--keep-lora", "--frozen-from", str(run / "export")]) == 0
    assert_equal(AuraModel.from_pretrained(out).state_dict(), trained.state_dict())


def test_what_is_no_run(tmp_path, out, capsys):
    assert MAIN([str(tmp_path), "--out", str(out)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("train: {steps: 200}\n")
    assert MAIN([str(tmp_path), "--out", str(out)]) == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err
    assert MAIN([str(tmp_path), "--out", str(out), "--checkpoint", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_weights_of_another_model_are_refused(train, run, out, tmp_path, capsys):
    train()
    weights = trained_weights(run / "checkpoints" / "step_000004")
    save_file({"other.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    changed = {**weights, "mllm.lm_head.weight": weights["mllm.lm_head.weight"][:-1]}
    save_file({name: value.contiguous() for name, value in changed.items()}, tmp_path / "b.safetensors")
    for name, expected in (("a", "is of another model: it lacks"), ("b", "mllm.lm_head.weight has the shape")):
        assert MAIN([str(run), "--out", str(out), "--checkpoint", str(tmp_path / f"{name}.safetensors")]) == 2
        assert expected in capsys.readouterr().err
    (tmp_path / "c.bin").write_bytes(pickle.dumps(Stranger()))
    assert MAIN([str(run), "--out", str(out), "--checkpoint", str(tmp_path / "c.bin")]) == 2
    assert "holds more than weights" in capsys.readouterr().err
