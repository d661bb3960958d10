"""Every setting of AURA, and how it is read. Imports no torch.

``settings.py`` holds the settings with their defaults; ``parse.py`` reads YAML layers and dotted overrides.
"""

from aura.config.parse import load_config, parse_config, to_yaml
from aura.config.settings import (
    REDUCE_BUCKET,
    SAME_NUMBERS,
    Config,
    DataSettings,
    GiouOver,
    LoraSettings,
    LossSettings,
    ModelSettings,
    ObjectsPerAnswer,
    Precision,
    Protocol,
    SourceSettings,
    SplitSettings,
    TrainSettings,
)

__all__ = [
    "REDUCE_BUCKET",
    "SAME_NUMBERS",
    "Config",
    "DataSettings",
    "GiouOver",
    "LoraSettings",
    "LossSettings",
    "ModelSettings",
    "ObjectsPerAnswer",
    "Precision",
    "Protocol",
    "SourceSettings",
    "SplitSettings",
    "TrainSettings",
    "load_config",
    "parse_config",
    "to_yaml",
]
