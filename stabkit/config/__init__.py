"""The typed configuration of a run: its sections, how it is read, and its run id."""

from stabkit.config.branch import BranchConfig
from stabkit.config.compute import ComputeConfig
from stabkit.config.effect import without_effect
from stabkit.config.fault import FaultConfig
from stabkit.config.method import HeadNorm, MethodConfig
from stabkit.config.model import RESNETS, ModelConfig, conv_stem_widths
from stabkit.config.optim import OptimConfig
from stabkit.config.reading import (
    ConfigError,
    keys_of,
    load_config,
    missing_data,
    parse_overrides,
    read_base,
    read_config,
    read_mapping,
    run_id,
    save_config,
    suggest,
    unusable_path,
    validate,
    with_settings,
)
from stabkit.config.run import DataConfig, KnnConfig, RunConfig, RuntimeConfig
from stabkit.config.same import differences
from stabkit.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
)
from stabkit.presets import preset_names

__all__ = [
    "RESNETS",
    "BranchConfig",
    "ComputeConfig",
    "ConfigError",
    "DataConfig",
    "FaultConfig",
    "Fraction",
    "HeadNorm",
    "KnnConfig",
    "MethodConfig",
    "ModelConfig",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptimConfig",
    "PositiveFloat",
    "PositiveInt",
    "RunConfig",
    "RuntimeConfig",
    "Section",
    "Seed",
    "conv_stem_widths",
    "differences",
    "keys_of",
    "load_config",
    "missing_data",
    "parse_overrides",
    "preset_names",
    "read_base",
    "read_config",
    "read_mapping",
    "run_id",
    "save_config",
    "suggest",
    "unusable_path",
    "validate",
    "with_settings",
    "without_effect",
]
