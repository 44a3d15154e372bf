"""One configuration: YAML files, overrides on the command line, everything checked before anything loads."""

from turncredit.config.files import load_config, parse_config, read_extending, read_yaml, refuse_unusable_envs
from turncredit.config.models import (
    ClusterConfig,
    Config,
    EngineConfig,
    EnvConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    Strict,
    TeacherConfig,
    TinyModel,
    TrackingConfig,
    TrainerConfig,
    WarmstartConfig,
    sentence_of,
)

__all__ = [
    "ClusterConfig", "Config", "EngineConfig", "EnvConfig", "EvaluationConfig", "LoraConfig", "ModelConfig",
    "RolloutConfig", "Strict", "TeacherConfig", "TinyModel", "TrackingConfig", "TrainerConfig", "WarmstartConfig",
    "load_config", "parse_config", "read_extending", "read_yaml", "refuse_unusable_envs", "sentence_of"]
