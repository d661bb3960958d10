"""Indexes of sharded weights come from others: they name files beside them, and no others."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from aura.train.export import read_trained
from aura.weights.files import check_weight_files, read_folder_tensors

OUT = ["../secret.safetensors", "/etc/passwd", "..", "a/../../secret.safetensors", "C:\\secret", "", 7, None]


@pytest.fixture
def folder(tmp_path):
    """A folder of a model, beside a file that is none of its own."""
    save_file({"secret": torch.ones(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "model" / "model-00001-of-00001.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "model" / "pytorch_model-00001-of-00001.bin")
    return tmp_path / "model"


def write(folder, kind, where):
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", OUT)
def test_a_shard_lies_beside_its_index(folder, kind, name):
    write(folder, kind, {"a": name})
    for other in [] if kind.startswith("model") else folder.glob("model*"):
        other.unlink()
    readers = [
        lambda: check_weight_files(folder, "model.sam"),
        lambda: read_folder_tensors(folder, "model.sam"),
        lambda: read_trained(folder),
    ]
    for read in readers:
        with pytest.raises(
            ValueError, match=rf"{kind}\.index\.json says that 'a' is in .* no name of a file beside it"
        ):
            read()


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "{", "\udcff"])
def test_what_is_no_index_is_named(folder, text):
    (folder / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
    for read in (check_weight_files, read_folder_tensors):
        with pytest.raises(ValueError, match=r"^model\.sam: .*index\.json is not an index of weights; get it again"):
            read(folder, "model.sam")


def test_an_index_of_the_kind_that_is_not_read_may_stand_alone(folder):
    """As the hub leaves it, where only the better kind was fetched."""
    write(folder, "model.safetensors", {"a": "model-00001-of-00001.safetensors"})
    write(folder, "pytorch_model.bin", {"a": "pytorch_model-00001-of-00007.bin"})
    assert check_weight_files(folder, "model.sam")
    assert list(read_folder_tensors(folder, "model.sam")) == ["a"]


def test_shards_of_the_older_kind_are_missed_too(folder):
    (folder / "model-00001-of-00001.safetensors").unlink()
    write(folder, "pytorch_model.bin", {"a": "pytorch_model-00001-of-00007.bin"})
    with pytest.raises(ValueError, match=r"lacks pytorch_model-00001-of-00007\.bin, which its index names"):
        check_weight_files(folder, "model.sam")
