"""Weights, gradients and optimiser state in shards over the processes: FSDP2, torch's `fully_shard`.

Each layer is a unit whose weights are gathered when it is computed and let go behind it; embedding, last norm and head
are another. Every process takes part in each pass, so that those with fewer micro-batches repeat one for nothing
(`Learner`). Sampling goes token by token, for as long as each process's own episodes last, and cannot be done in
common: each process samples from a whole copy of the weights, which is brought up to date behind every update.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from turncredit.errors import UserError
from turncredit.trainer.compiled import layers_of
from turncredit.trainer.parallel import World


def shard_model(model: Any, forward: Callable[..., Tensor], world: World) -> None:
    """Shard a model in place. `forward` becomes its method of the same name, before which weights are gathered.

    Raises:
        UserError: there is one process, or the model's layers are not known.
    """
    if world.size == 1:
        raise UserError("trainer.sharding is 'full' in one process: launch several with torchrun, or set it to 'none'")
    layers = layers_of(model)
    if not layers:
        raise UserError(f"trainer.sharding is 'full': {type(model).__name__} has no layers that can be told apart; set "
                        "it to 'none'")
    mesh = init_device_mesh(model.device.type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the head is used behind the forward pass
    setattr(model, forward.__name__, MethodType(forward, model))
    register_fsdp_forward_method(model, forward.__name__)


def whole(value: Any) -> Any:
    """A tensor with its shards put together, on every process; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def copy_whole(model: Any, target: Any) -> None:
    """Bring a whole copy of a sharded model up to date."""
    for (name, shard), (other, copy) in zip(model.named_parameters(), target.named_parameters(), strict=True):
        assert name == other
        copy.copy_(whole(shard))


class WholeState:
    """The state of an optimiser of shards, as one process would have it: a run may go on with another number."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._gathered: dict[str, Any] = {}

    def gather(self) -> None:
        """Put the shards together; every process has to."""
        saved = self.optimizer.state_dict()
        states = {i: {name: whole(value) for name, value in state.items()} for i, state in saved["state"].items()}
        self._gathered = {**saved, "state": states}

    def state_dict(self) -> dict[str, Any]:
        """What was gathered last."""
        return self._gathered

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take each process's shards of a whole state."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        states = {i: {name: _shard(value, parameters[int(i)]) for name, value in state.items()}
                  for i, state in saved["state"].items()}
        self.optimizer.load_state_dict({**saved, "state": states})


def _shard(value: Any, like: Any) -> Any:
    if isinstance(value, Tensor) and value.shape == like.shape and isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
