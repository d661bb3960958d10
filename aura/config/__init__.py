"""Every setting of AURA, and how it is read. Imports no torch.

``settings.py`` and ``data_settings.py`` hold the settings with their defaults; ``parse.py`` reads YAML layers and
dotted overrides.
"""

from aura.config.data_settings import DataSettings, ObjectsPerAnswer, SourceSettings, SplitSettings
from aura.config.parse import load_config, parse_config, to_yaml
from aura.config.settings import (
    OPTIONAL_TERMS,
    REDUCE_BUCKET,
    SAME_NUMBERS,
    ConditionForm,
    Config,
    GiouOver,
    LoraSettings,
    LossSettings,
    ModelSettings,
    Precision,
    Protocol,
    SpatialForm,
    TrainSettings,
)

__all__ = [
    "OPTIONAL_TERMS",
    "REDUCE_BUCKET",
    "SAME_NUMBERS",
    "ConditionForm",
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
    "SpatialForm",
    "SplitSettings",
    "TrainSettings",
    "load_config",
    "parse_config",
    "to_yaml",
]
