"""Adapters of low rank beside frozen weights (LoRA, arXiv 2106.09685), by peft: h = W x + alpha / rank B A x.

B is 0 at first, so a policy begins as its base, and is its base again wherever the adapter is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from turncredit.config import LoraConfig
from turncredit.errors import MissingExtra, UserError

NAME = "default"
FILE = "adapter_config.json"


def add_adapter(model: Any, settings: LoraConfig, seed: int, base: str) -> None:
    """Put an adapter into a model: from now on nothing else of it is trained.

    Args:
        model: a transformers model without one.
        seed: of A.
        base: where the model's own weights stand, for who loads the adapter: a path or hub name; a relative path
            may be relative to the folder that the adapter is saved to.
    Raises:
        MissingExtra: peft is not installed.
        UserError: `model.lora.layers` names none of the model's.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "lora") from None
    layers = settings.layers if settings.layers == "all-linear" else list(settings.layers)
    adapter = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=layers, lora_dropout=0.0,
                              task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.add_adapter(adapter, NAME)
        except ValueError as error:
            raise UserError(f"model.lora.layers is {settings.layers!r}: {type(model).__name__} has no such layers "
                            f"({' '.join(str(error).split())[:200]}); name some, or leave it at 'all-linear'") from None
    model.peft_config[NAME].base_model_name_or_path = base


def has_adapter(model: Any) -> bool:
    """Whether `add_adapter` or `load_adapter` was there."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def base_of(folder: str) -> str | None:
    """Where the weights stand that a saved adapter belongs to; None for a folder without one, or a hub name."""
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    base = str(json.loads(file.read_text())["base_model_name_or_path"])
    beside = Path(folder) / base
    return str(beside.resolve()) if beside.is_dir() else base


def load_adapter(model: Any, folder: str) -> None:
    """Put a saved adapter into the model that it belongs to, to be trained on.

    Raises:
        MissingExtra: peft is not installed.
        UserError: it belongs to another model.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "lora") from None
    adapter = peft.LoraConfig.from_pretrained(folder)
    base = adapter.base_model_name_or_path
    model.add_adapter(adapter, NAME)
    model.peft_config[NAME].base_model_name_or_path = base  # transformers puts in where it found the model
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    # transformers' own `load_adapter` would leave a mark by which everything saved later had the adapter's prefix.
    weights = {name.removeprefix("base_model.model."): weight for name, weight in saved.items()}
    result = peft.set_peft_model_state_dict(model, weights, NAME)
    absent = [name for name in result.missing_keys if ".lora_" in name]
    if absent or result.unexpected_keys:
        raise UserError(f"the adapter in {folder!r} is not of the model {base!r}: "
                        f"{[*absent, *result.unexpected_keys][0]} does not fit")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model as it was before its adapter, for a while."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """The adapter alone, by the names that peft gives it in a file."""
    import peft

    weights = peft.get_peft_model_state_dict(model, adapter_name=NAME)
    return {f"base_model.model.{name}": weight.detach() for name, weight in weights.items()}


def adapter_settings(model: Any) -> dict[str, Any]:
    """What a file of the adapter says beside its weights, for engines that load it."""
    found = model.peft_config[NAME]
    return {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": found.r,
            "lora_alpha": found.lora_alpha, "target_modules": sorted(found.target_modules)}


@torch.no_grad()
def merged_weights(model: Any, adapted: bool = True) -> dict[str, Tensor]:
    """The weights of a model without adapters that computes the same: W + alpha / rank B A, by its own names.

    Args:
        adapted: False for W alone.
    """
    from peft.tuners.lora import LoraLayer

    layers = {f"{name}.base_layer.weight": m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    merged = {}
    for name, weight in model.state_dict().items():
        if ".lora_" not in name:
            whole = weight + layers[name].get_delta_weight(NAME) if adapted and name in layers else weight
            merged[name.replace(".base_layer.", ".")] = whole
    return merged
