"""QLoRA under DeepSpeed: adapters train over packed weights, checkpoints leave those out, exports unpack them."""

import importlib.util

import pytest
import torch

from aura.config import Config, DataSettings, LoraSettings, ModelSettings, TrainSettings
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.model import AuraModel
from aura.model.quantize import unpacked
from aura.train.checkpoint import export
from aura.train.engine import Engine, start_process, trained_weights
from aura.weights.build import build_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
SETTINGS = TrainSettings(steps=20, warmup_steps=1, accumulation=1, lr=1e-2, precision="fp32", zero_stage=2)


@pytest.fixture
def tiny_llava_config(tiny_llava_config):
    """Wide enough for 4-bit blocks of 64 weights."""
    text = tiny_llava_config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = 64, 128, 16
    return tiny_llava_config


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_run_trains_resumes_and_exports(kind, tiny_llava_dir, tiny_sam_dir, make_sample, tmp_path):
    lora = LoraSettings(r=4, dropout=0.0)
    settings = ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir, lora=lora, quantize=kind)
    batch = collate([make_sample([[9], [7]], seg=2)])
    criterion = AuraCriterion(Config().loss)
    process = start_process(SETTINGS)

    def start():
        torch.manual_seed(0)
        model, processor, _ = build_model(settings, DataSettings(max_length=300))
        return Engine(model, SETTINGS, process), processor

    def steps(engine, count):
        rows = engine.module.config.llava_config.text_config.vocab_size
        batch.input_ids.clamp_(max=rows - 1)
        batch.target_ids.clamp_(max=rows - 1)
        losses = []
        for _ in range(count):
            loss = criterion(engine(batch), batch).total
            engine.backward(loss)
            engine.step()
            losses.append(float(loss.detach()))
        return losses

    engine, processor = start()
    before = unpacked(engine.module, torch.float32)
    first = steps(engine, 8)
    assert first[-1] < first[0]
    engine.save(tmp_path, "middle")
    saved = trained_weights(tmp_path / "middle")
    packed = {name.replace(".base_layer", "") for name in before}
    assert any(".lora_" in name for name in saved) and not packed & {n.replace(".base_layer", "") for n in saved}
    expected = steps(engine, 3)

    resumed, _ = start()
    resumed.load(tmp_path, "middle")
    assert steps(resumed, 3) == expected

    export(engine, processor, tmp_path / "export", None)
    plain = AuraModel.from_pretrained(tmp_path / "export")
    state = plain.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    with torch.no_grad():
        wanted, found = engine.module.eval()(batch), plain.eval()(batch)
    scale = wanted.text_logits.abs().max()
    # LLM.int8() rounds the inputs of each layer too.
    assert (found.text_logits - wanted.text_logits).abs().max() < (0.1 if kind == "int8" else 1e-4) * scale
