"""An original LLaVA as plain modules, and the folder it comes in."""

import json

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from aura.config import DataSettings

DATA = DataSettings(max_length=300)
PIECES, ROWS, HIDDEN = 400, 403, 32  # pieces of the plain tokenizer (Llama's has 32000), rows of a v1-1 model
VISION = CLIPVisionConfig(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
    projection_dim=16, initializer_range=0.3,
)  # fmt: skip


def llama(rows, **changes):
    config = LlamaConfig(
        vocab_size=rows, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, rms_norm_eps=1e-6, initializer_range=0.3, tie_word_embeddings=False, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


class V1:
    """An original LLaVA as plain modules: a Llama, a CLIP tower and one linear layer; and the files it comes in."""

    def __init__(self, rows=ROWS):
        self.llama, self.projector, self.tower = llama(rows), nn.Linear(24, HIDDEN), CLIPVisionModel(VISION).eval()
        self.state = {name: value.detach().clone() for name, value in self.llama.state_dict().items()}
        self.state |= {f"model.mm_projector.{k}": v.detach().clone() for k, v in self.projector.state_dict().items()}

    def config(self, **more):
        names = (
            "hidden_size intermediate_size num_hidden_layers num_attention_heads rms_norm_eps max_position_embeddings "
            "initializer_range vocab_size"
        )
        fields = {name: getattr(self.llama.config, name) for name in names.split()}
        fields |= {"model_type": "llava", "mm_hidden_size": 24, "mm_vision_select_layer": -2, "use_mm_proj": True}
        fields |= {"mm_vision_tower": "tiny", "mm_use_im_start_end": True}
        return {"architectures": ["LlavaLlamaForCausalLM"], **fields, **more}

    def logits(self, before, pixels, after):
        """What the original computes for ids, an image and ids: [L, V]."""
        with torch.no_grad():
            features = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            table = self.llama.model.embed_tokens
            parts = [table(torch.tensor([before])), self.projector(features), table(torch.tensor([after]))]
            return self.llama(inputs_embeds=torch.cat(parts, dim=1)).logits[0]


def write_v1(folder, model, state, config, *, added=("<im_patch>", "<im_start>", "<im_end>"), shards=2):
    """The folder as the period's ``save_pretrained`` left it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    form = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({k: {"content": v, **form} for k, v in ends.items()}))
    (folder / "added_tokens.json").write_text(json.dumps({name: PIECES + i for i, name in enumerate(added)}))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config))
    names, where = list(state), {}
    for number in range(shards):
        part = {name: state[name] for name in names[number::shards]}
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(folder)


def logits_of(model, processor, before, pixels, after):
    """What our parts compute for the same: [L, V]."""
    ids = torch.tensor([[*before, *[processor.text.image_token_id] * processor.text.num_image_tokens, *after]])
    with torch.no_grad():
        return model.mllm.lm_head(model.mllm(ids, clip_features=model.mllm.encode_images(pixels)))[0]
