import copy
import json

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from aura.config import LossSettings, ModelSettings
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.model import AuraConfig, AuraModel, folded_decoder, segmentation
from aura.model.mllm import Mllm

WITHOUT_SEG = {"conversations": [[6], [4]], "seg": 0}


def backward(model, batch):
    model.zero_grad()
    AuraCriterion(LossSettings())(model(batch), batch).total.backward()


def without_gradient(model):
    return [name for name, p in model.trainable_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"occlusion_condition": False},
        {"spatial_occlusion": False},
        {"lora": None},
        {"train_embeddings": False},
        {"train_projector": True},
        {"masks": "visible", "occlusion_condition": False, "spatial_occlusion": False},
        {"masks": "amodal", "spatial_occlusion": False},
        {"condition_form": "scaled", "spatial_form": "image"},
        {"condition_form": "film", "spatial_form": "features"},
        {"condition_form": "token", "spatial_form": "detached"},
    ],
)
@pytest.mark.parametrize("seg", [0, 2])
def test_every_trainable_parameter_takes_part_in_every_backward(make_model, make_sample, changes, seg):
    model = make_model(**changes).train()
    batch = collate([make_sample([[8], [6]], seg=seg)])
    backward(model, batch)
    assert without_gradient(model) == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    used = [name for name, p in model.trainable_parameters() if p.grad.any()]
    assert any("_decoder." in name for name in used) == (seg > 0)


def test_a_batch_without_seg_gives_empty_masks_and_changes_no_mask_part(tiny_model, make_sample):
    batch = collate([make_sample([[6], [4]], seg=0)])
    output = tiny_model(batch)
    assert output.visible_logits.shape == (0, 32, 32) and output.spatial_logits.shape == (0, 3, 32, 32)
    assert output.occlusion_rate.shape == (0,) and output.unused.item() == 0
    backward(tiny_model, batch)
    for name, parameter in tiny_model.trainable_parameters():
        in_language_model = name.startswith("mllm")
        assert parameter.grad.any() == in_language_model or in_language_model, name


def test_gradients_reach_both_decoders_through_the_spatial_map_alone(tiny_model, make_sample):
    tiny_model(collate([make_sample([[8]])])).spatial_logits.log_softmax(1)[:, 2].sum().backward()
    for name in ("visible_decoder", "amodal_decoder", "occlusion_condition"):
        assert any(p.grad is not None and p.grad.any() for p in getattr(tiny_model, name).parameters()), name


def test_gradient_checkpointing_changes_nothing(tiny_model, make_sample):
    batch = collate([make_sample([[8], [6]])])
    tiny_model.train()
    backward(tiny_model, batch)
    expected = {name: p.grad.clone() for name, p in tiny_model.trainable_parameters()}
    tiny_model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in tiny_model.mllm.language_model.layers)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in tiny_model.image_encoder.modules())
    backward(tiny_model, batch)
    for name, parameter in tiny_model.trainable_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": None},
        {"condition_form": "token", "spatial_form": "features"},
        {"condition_form": "film", "spatial_form": "image"},
        {"condition_form": "scaled", "spatial_form": "detached"},
    ],
)
def test_save_and_load_are_bit_exact(make_model, make_sample, tmp_path, changes):
    model = make_model(**changes)
    model.save_pretrained(tmp_path)
    loaded, info = AuraModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    stored = json.loads((tmp_path / "config.json").read_text())
    for key in ("condition_form", "spatial_form"):
        assert stored[key] == getattr(loaded.config, key) == getattr(model.config, key)
        assert stored[key] == changes.get(key, getattr(ModelSettings(), key))
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    for (name, buffer), (_, ours) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, ours), name
    batch = collate([make_sample([[8], [6]])])
    ours, theirs = model(batch), loaded(batch)
    assert torch.equal(ours.amodal_logits, theirs.amodal_logits)
    assert torch.equal(ours.text_logits, theirs.text_logits)
    trainable = [name for name, _ in model.trainable_parameters()]
    assert [name for name, _ in loaded.trainable_parameters()] == trainable
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()


def test_loading_with_a_device_map_and_in_half_precision(tiny_model, make_sample, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    batch = collate([make_sample([[8], [6]])])
    mapped = AuraModel.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(mapped(batch).amodal_logits, tiny_model(batch).amodal_logits)
    for dtype in (torch.bfloat16, torch.float16):
        half = AuraModel.from_pretrained(tmp_path, dtype=dtype)
        assert half.mllm.lm_head.weight.dtype == dtype
        output = half(batch)
        assert output.amodal_logits.isfinite().all() and output.text_logits.dtype == dtype
    assert half.visible_decoder.iou_token.weight.dtype == torch.float32  # fp16 keeps segmentation whole


def test_decoders_may_lie_on_different_devices(make_model, monkeypatch):
    model = make_model().to("meta")

    def decode(decoder, prompts, *_):
        device = "meta" if decoder is model.visible_decoder else "cpu"
        return torch.zeros(len(prompts), 32, 32, device="meta"), torch.zeros(len(prompts), device=device)

    monkeypatch.setattr(segmentation, "decode", decode)
    states, images = torch.empty(2, 32, device="meta"), torch.empty(1, 32, 8, 8, device="meta")
    canvas = model._blank_canvas(images, None)
    _, unused = model._decode(states, canvas, torch.zeros(2, dtype=torch.int64, device="meta"))
    assert unused.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_weights_in_half_precision(make_model, make_sample, dtype):
    """As DeepSpeed casts the model: every weight, and pixels stay fp32."""
    model = make_model().to(dtype)
    batch = collate([make_sample([[8], [6]])])
    backward(model, batch)
    assert all(p.grad.isfinite().all() for _, p in model.trainable_parameters())
    assert model.generate_answer(
        batch.input_ids[:, :9], clip_features=torch.randn(1, 4, 24), max_new_tokens=3
    ).token_ids


def test_ablations_remove_exactly_their_parameters(make_model):
    whole = {name for name, _ in make_model().named_parameters()}
    expected = {
        "occlusion_condition": lambda name: name.startswith("occlusion_condition."),
        "spatial_occlusion": lambda name: name.startswith("spatial_occlusion."),
    }
    for field, removed in expected.items():
        rest = {name for name, _ in make_model(**{field: False}).named_parameters()}
        assert rest == {name for name in whole if not removed(name)} and rest != whole
    plain = {name for name, _ in make_model(lora=None).named_parameters()}
    assert plain == {name.replace(".base_layer", "") for name in whole if ".lora_" not in name}
    frozen = [name for name, _ in make_model(train_embeddings=False).trainable_parameters()]
    assert not any("embed_tokens" in name or "lm_head" in name for name in frozen)
    usual = {name for name, _ in make_model().trainable_parameters()}
    added = {name for name, _ in make_model(train_projector=True).trainable_parameters()} - usual
    assert added == {f"mllm.projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


@pytest.mark.parametrize("tied", [False, True])
def test_the_row_of_seg_may_learn_alone(make_model, make_sample, tied, tmp_path):
    config = copy.deepcopy(make_model(train_embeddings="seg").config)
    config.llava_config.tie_word_embeddings = config.llava_config.text_config.tie_word_embeddings = tied
    model = AuraModel(AuraConfig(**{**config.to_dict(), "tie_word_embeddings": None}))
    model.save_pretrained(tmp_path)
    for some in (model, AuraModel.from_pretrained(tmp_path)):
        tables = some.mllm.language_model.embed_tokens.weight, some.mllm.lm_head.weight
        assert (tables[0] is tables[1]) == tied
        output = some(collate([make_sample([[8], [6]], seg=2)]))
        (output.text_logits.square().sum() + output.visible_logits.sum() + output.unused).backward()
        for table in tables:
            assert table.grad.any(1).nonzero().tolist() == [[some.config.seg_token_id]]
    model.config.train_embeddings = True
    model.freeze()
    model(collate([make_sample([[8], [6]], seg=2)])).text_logits.square().sum().backward()
    assert model.mllm.lm_head.weight.grad.any(1).sum() > 1


def test_neighbouring_features_stand_side_by_side_in_one_token(tiny_llava_config):
    class Same(nn.Identity):
        linear_1 = nn.Linear(1, 1)

    mllm = Mllm(LlavaForConditionalGeneration(tiny_llava_config), image_token_merge=2)
    mllm.projector = Same()
    tokens = mllm.project(torch.arange(16.0).view(1, 16, 1))
    assert tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_ablated_outputs_are_none(make_model, make_sample):
    output = make_model(occlusion_condition=False, spatial_occlusion=False)(collate([make_sample([[8]])]))
    assert output.occlusion_rate is None and output.spatial_logits is None
    assert output.visible_logits.shape == output.amodal_logits.shape == (1, 32, 32)


@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_a_model_of_one_kind_of_mask_is_the_other_without_its_second_decoder(make_model, make_sample, kind, tmp_path):
    bare = {"occlusion_condition": False, "spatial_occlusion": False}
    other = {"visible": "amodal", "amodal": "visible"}[kind]
    whole, alone = make_model(**bare), make_model(**bare, masks=kind)
    names = {name for name, _ in whole.named_parameters() if not name.startswith(f"{other}_decoder.")}
    assert {name for name, _ in alone.named_parameters()} == names
    alone.load_state_dict({name: value for name, value in whole.state_dict().items() if name in alone.state_dict()})
    batch = collate([make_sample([[8], [6]])])
    output, expected = alone(batch), whole(batch)
    assert getattr(output, f"{other}_logits") is None
    assert torch.equal(getattr(output, f"{kind}_logits"), getattr(expected, f"{kind}_logits"))
    assert getattr(alone(collate([make_sample([[8]], seg=0)])), f"{kind}_logits").shape == (0, 32, 32)
    alone.save_pretrained(tmp_path)
    loaded, info = AuraModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.masks == kind
    assert torch.equal(getattr(loaded(batch), f"{kind}_logits"), getattr(output, f"{kind}_logits"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": "amodal"}, "spatial_occlusion needs both masks"),
        ({"masks": "visible", "spatial_occlusion": False}, "occlusion_condition needs the amodal decoder"),
        ({"masks": "none"}, "masks must be"),
        ({"condition_form": "prompt"}, "condition_form must be one of residual, scaled, film, token, got 'prompt'"),
        ({"spatial_form": "sam"}, "spatial_form must be one of decoder, image, features, detached"),
    ],
)
def test_modules_that_need_the_other_mask_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AuraConfig(**changes)


def test_training_starts_from_the_baseline(tiny_config):
    """Fresh: LoRA and E_OC change nothing, both decoders agree, and E_SO says what the two masks imply."""
    model = AuraModel(tiny_config).eval()
    states, embeddings = torch.randn(3, 32), torch.randn(2, 32, 8, 8)
    output = model.decode_masks(states, embeddings, torch.tensor([0, 1, 1]))
    assert torch.equal(output.visible_logits, output.amodal_logits)
    visible, amodal = output.visible_logits.sigmoid(), output.amodal_logits.sigmoid()
    implied = torch.stack([(1 - visible) * (1 - amodal), visible, (1 - visible) * amodal], dim=1)
    assert torch.allclose(output.spatial_logits.softmax(1), implied, atol=1e-6)
    assert ((output.occlusion_rate > 0) & (output.occlusion_rate < 1)).all()


def test_prompts_of_several_images_share_a_call(make_model):
    tiny_model = make_model(intent=True, pointing=True)
    states, embeddings, features = torch.randn(4, 32), torch.randn(3, 32, 8, 8), torch.randn(3, 16, 24)
    image = torch.tensor([0, 0, 2, 1])
    together = tiny_model.decode_masks(states, embeddings, image, features)
    for k in range(4):
        alone = tiny_model.decode_masks(
            states[k : k + 1],
            embeddings[image[k]][None],
            torch.zeros(1, dtype=torch.int64),
            features[image[k]][None],
        )
        for name, value in alone.items():
            assert torch.allclose(getattr(together, name)[k], value[0], atol=1e-5), name
    assert tiny_model.decode_masks(states[:0], embeddings, image[:0], features).amodal_logits.shape == (0, 32, 32)


def test_cached_features_equal_pixels(tiny_model, make_sample):
    batch = collate([make_sample([[8]])])
    features = tiny_model.encode_images(batch.sam_pixels, batch.clip_pixels)
    cached = copy.copy(batch)
    cached.sam_pixels = cached.clip_pixels = None
    cached.sam_embeddings, cached.clip_features = features.sam_embeddings, features.clip_features
    assert features.sam_embeddings.shape == (1, 32, 8, 8) and features.clip_features.shape == (1, 4, 24)
    assert torch.equal(tiny_model(batch).amodal_logits, tiny_model(cached).amodal_logits)


def test_merging_lora_keeps_the_outputs(tiny_model, make_sample, tmp_path):
    batch = collate([make_sample([[8], [6]])])
    expected = tiny_model(batch)
    tiny_model.merge_lora()
    merged = tiny_model(batch)
    assert not tiny_model.mllm.lora_parameters() and tiny_model.config.lora is None
    assert torch.allclose(merged.text_logits, expected.text_logits, atol=1e-4)
    tiny_model.save_pretrained(tmp_path)
    loaded = AuraModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(batch).text_logits, merged.text_logits)
    loaded.add_lora({"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["o_proj"]})
    assert torch.equal(loaded(batch).text_logits, merged.text_logits)
    assert len(loaded.mllm.lora_parameters()) == 4


def test_unknown_lora_targets_are_refused(make_model):
    with pytest.raises(ValueError, match=r"model\.lora\.targets names \['qkv'\]"):
        make_model(lora={"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "qkv"]})


def test_lora_touches_the_language_model_only(tiny_model):
    names = [name for name, _ in tiny_model.named_parameters() if "lora" in name]
    assert len(names) == 8 and all(name.startswith("mllm.language_model.layers.") for name in names)


def test_image_placeholders_must_match(tiny_model, make_sample):
    batch = collate([make_sample([[8]])])
    batch.input_ids[0, 3] = 20
    with pytest.raises(ValueError, match=r"\[3\] image placeholders .* 4 features"):
        tiny_model(batch)


def test_the_fingerprint_tells_encoders_apart(tiny_model):
    fingerprint = tiny_model.encoder_fingerprint()
    with torch.no_grad():
        tiny_model.mllm.lm_head.weight.add_(1)
        assert tiny_model.encoder_fingerprint() == fingerprint
        tiny_model.image_encoder.neck.conv1.weight[0, 0] += 1e-3
    assert tiny_model.encoder_fingerprint() != fingerprint


def test_tied_embeddings_stay_tied(tiny_config, make_sample, tmp_path):
    config = copy.deepcopy(tiny_config)
    config.llava_config.tie_word_embeddings = config.llava_config.text_config.tie_word_embeddings = True
    config = AuraConfig(**{**config.to_dict(), "tie_word_embeddings": None})
    model = AuraModel(config)
    assert model.mllm.lm_head.weight is model.mllm.language_model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = AuraModel.from_pretrained(tmp_path)
    assert loaded.mllm.lm_head.weight is loaded.mllm.language_model.embed_tokens.weight
    batch = collate([make_sample([[8]])])
    assert torch.equal(loaded.eval()(batch).text_logits, model.eval()(batch).text_logits)


def test_parts_add_up(tiny_model):
    parts = tiny_model.num_parameters_by_part()
    assert sum(p.total for p in parts.values()) == sum(p.numel() for p in tiny_model.parameters())
    assert parts["image_encoder"].trainable == parts["prompt_encoder"].trainable == parts["projector"].trainable == 0
    assert parts["visible_decoder"] == parts["amodal_decoder"] and parts["lora"].trainable == parts["lora"].total


def test_7b_sizes():
    """The paper's model, counted without memory: LLaVA-7B v1-1, SAM ViT-H, LISA's choice of what to train."""
    llava = {
        "text_config": {
            "model_type": "llama", "vocab_size": 32003, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
        },
    }  # fmt: skip
    sam = {
        "vision_config": {
            "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
            "global_attn_indexes": [7, 15, 23, 31],
        }
    }  # fmt: skip
    lora = {"r": 8, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
    with torch.device("meta"):
        model = AuraModel(AuraConfig(llava_config=llava, sam_config=sam, lora=lora))
    parts = model.num_parameters_by_part()
    size = {name: part.total for name, part in parts.items()}
    assert size["language_model"] + size["embeddings_and_head"] == 6_738_440_192
    assert size["vision_tower"] == 303_179_776
    assert size["projector"] == 4_198_400 + 4096 * 4097  # v1-1's one layer, then the identity that stands for no second
    assert size["lora"] == 4_194_304
    assert size["image_encoder"] == 637_026_048
    assert size["prompt_encoder"] == 6_220 + 256  # transformers counts the random positional matrix
    assert size["visible_decoder"] == size["amodal_decoder"] == 4_058_340
    assert size["projection"] == 17_830_144
    occlusion = parts["occlusion_condition"].trainable + parts["spatial_occlusion"].trainable
    assert sum(p.trainable for p in parts.values()) == 292_309_704 + occlusion
    assert size["occlusion_condition"] == 2 * (256 * 256 + 256) + 257


@pytest.mark.parametrize("least_pixels", [1, 10**6])
def test_masks_drawn_on_a_canvas_are_the_masks(tiny_model, least_pixels, monkeypatch):
    """Of folded decoders, it holds the image's side; E_SO's map, which no mask needs, is left out."""
    monkeypatch.setattr(folded_decoder, "LEAST_PIXELS", least_pixels)
    states, embeddings, image = torch.randn(3, 32), torch.randn(2, 32, 8, 8), torch.tensor([0, 1, 0])
    with torch.no_grad():
        canvas = tiny_model.canvas(embeddings)
        assert (canvas.visible is None) == (canvas.amodal is None) == (least_pixels > 1)
        drawn, expected = (tiny_model.decode_masks(states, on, image) for on in (canvas, embeddings))
        alone = tiny_model.decode_masks(states[:1], tiny_model.canvas(embeddings[:1]), image[:1])
    for name in ("visible_logits", "amodal_logits", "occlusion_rate"):
        assert torch.allclose(drawn[name], expected[name], atol=1e-5)
        assert torch.allclose(alone[name], expected[name][:1], atol=1e-5)
    assert drawn.spatial_logits is None and expected.spatial_logits is not None
    tensors = [*canvas[:2], *(canvas.visible or ()), *(canvas.amodal or ())]
    assert canvas.num_bytes == 4 * sum(tensor.numel() for tensor in tensors)
