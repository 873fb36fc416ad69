"""minidpt: few-shot prompt tuning of CLIP (zero-shot, CoOp, VPT, VLP, DPT) in plain PyTorch."""

from .checkpoints.pretrained import load
from .checkpoints.prompt_file import read_published
from .clip.network import CLIP
from .clip.state_dict import build_clip
from .clip.tokenizer import tokenize
from .config import METHODS, PromptConfig
from .exporting import export
from .inference import Prediction
from .maps import AttentionMaps, attention_maps
from .model import ModelOutput, PromptedCLIP, build_model, load_model
from .training import learning_rate, parameter_groups

__version__ = "1.0.0"
__all__ = [
    "AttentionMaps", "CLIP", "METHODS", "ModelOutput", "Prediction", "PromptConfig", "PromptedCLIP",
    "attention_maps", "build_clip", "build_model", "export", "learning_rate", "load", "load_model",
    "parameter_groups", "read_published", "tokenize",
]  # fmt: skip
