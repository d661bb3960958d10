"""The network: LLaVA with LoRA, SAM with twin mask decoders, and the occlusion modules.

Open ``aura.py`` first: its ``forward`` names every part in the order of the paper. ``generation.py`` writes answers.
"""

from aura.model.aura import AuraModel, PartSize
from aura.model.configuration import AuraConfig
from aura.model.generation import Generation

__all__ = ["AuraConfig", "AuraModel", "Generation", "PartSize"]
