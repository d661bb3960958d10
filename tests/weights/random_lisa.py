"""A random LISA as plain modules, and the files it comes in."""

import json

import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, SamModel

from aura.weights.sam import upstream_name

HIDDEN, CHANNELS = 32, 32
PREFIX = "base_model.model."


class Parts:
    """A random LISA as plain modules, and the two states that its training and its merge script leave.

    Args:
        base_rows: Embeddings of the LLaVA that LISA started from.
        rows: Embeddings of LISA.
    """

    def __init__(self, sam_config, clip_config, base_rows, rows):
        self.base_rows, self.rows = base_rows, rows
        self.config = LlamaConfig(
            vocab_size=rows, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=512, rms_norm_eps=1e-6, initializer_range=0.3,
        )  # fmt: skip
        sam_config.mask_decoder_config.num_attention_heads = 8
        sam_config.mask_decoder_config.layer_norm_eps = 1e-5
        self.sam, self.clip = SamModel(sam_config).eval(), CLIPVisionModel(clip_config).eval()
        self.projector = nn.Linear(clip_config.hidden_size, HIDDEN)
        layers = (nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CHANNELS), nn.Dropout(0.0))
        self.text_hidden_fcs = nn.Sequential(*layers)
        for module in (self.sam, self.clip):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
        self.sam.tie_weights()
        llama = LlamaForCausalLM(self.config).eval()
        adapted = get_peft_model(llama, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.2)
        self.training = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
        self.llama = adapted.merge_and_unload()

        others = {f"model.mm_projector.{name}": value for name, value in self.projector.state_dict().items()}
        others |= {
            f"model.text_hidden_fcs.0.{name}": value for name, value in self.text_hidden_fcs.state_dict().items()
        }
        others |= {f"model.visual_model.{upstream_name(k)}": value for k, value in self.sam.state_dict().items()}
        self.merged = {name: value.clone() for name, value in (dict(self.llama.state_dict()) | others).items()}
        clip = {name.removeprefix("vision_model."): value for name, value in self.clip.state_dict().items()}
        others |= {f"model.vision_tower.vision_tower.vision_model.{name}": value for name, value in clip.items()}
        self.training |= {PREFIX + name: value.clone() for name, value in others.items()}
        self.training[f"{PREFIX}model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    def v1_config(self, rows, **more):
        """``config.json`` of an original LLaVA."""
        names = (
            "hidden_size intermediate_size num_hidden_layers num_attention_heads rms_norm_eps max_position_embeddings "
            "initializer_range tie_word_embeddings bos_token_id eos_token_id"
        )
        fields = {name: getattr(self.config, name) for name in names.split()}
        fields |= {"model_type": "llava", "vocab_size": rows, "mm_hidden_size": 24, "mm_vision_select_layer": -2}
        fields |= {"mm_vision_tower": "openai/clip-vit-large-patch14", "use_mm_proj": True}
        return {"architectures": ["LlavaLlamaForCausalLM"], **fields, **more}

    def lisa_config(self):
        more = {"train_mask_decoder": True, "out_dim": CHANNELS, "mm_use_im_start_end": True}
        return self.v1_config(self.rows, **more, architectures=["LISAForCausalLM"])


def write_tokenizer(folder, model, *added):
    """A tokenizer as transformers 4.31 saved it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    added = {token: size + index for index, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True}))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def write_shards(folder, state, form="bin"):
    """Two shards and their index, as ``save_pretrained`` wrote them."""
    stem = {"bin": "pytorch_model", "safetensors": "model"}[form]
    files = [f"{stem}-0000{i}-of-00002.{form}" for i in (1, 2)]
    where = {name: files[index % 2] for index, name in enumerate(state)}
    for file in files:
        shard = {name: value.contiguous() for name, value in state.items() if where[name] == file}
        torch.save(shard, folder / file) if form == "bin" else save_file(shard, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps(index))
