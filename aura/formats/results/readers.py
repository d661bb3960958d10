"""Which reader takes which method's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aura.formats.results.answers import read_glamm, read_psalm, read_sa2va
from aura.formats.results.coco import read_coco_results
from aura.formats.results.folders import read_mask_folder
from aura.formats.results.found import FoundMask


def read_either(path: str | Path) -> list[FoundMask]:
    """A folder of masks or a file of COCO results."""
    return read_mask_folder(path) if Path(path).is_dir() else read_coco_results(path)


READERS: dict[str, Callable[[str | Path], list[FoundMask]]] = {
    "coco": read_coco_results,
    "masks": read_mask_folder,
    "vrsp": read_coco_results,
    "aisformer": read_coco_results,
    "c2f_seg": read_either,
    "sd_amodal": read_either,
    "lisa": read_mask_folder,
    "gsva": read_mask_folder,
    "glamm": read_glamm,
    "sa2va": read_sa2va,
    "psalm": read_psalm,
}
"""By the name that ``scripts/score_predictions.py --from`` takes: two forms, then methods."""
