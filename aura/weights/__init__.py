"""Weights from outside, read into ready modules, with an account of every tensor.

Each ``load_*`` function takes a path and returns a module with a :class:`PartReport`; :mod:`aura.weights.build` chooses
the function and puts the modules together, so that another layout is one more function.
"""

from aura.weights.files import PartReport, check_weight_files, read_config
from aura.weights.lisa import is_lisa, load_lisa
from aura.weights.llava import load_llava
from aura.weights.sam import load_sam
from aura.weights.vision_tower import load_vision_tower

__all__ = [
    "PartReport",
    "check_weight_files",
    "is_lisa",
    "load_lisa",
    "load_llava",
    "load_sam",
    "load_vision_tower",
    "read_config",
]
