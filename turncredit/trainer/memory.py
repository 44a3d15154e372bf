"""How much memory a run will take at its peak, found out before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from turncredit.config import RolloutConfig, TrainerConfig
from turncredit.episode import Segment
from turncredit.errors import UserError
from turncredit.trainer.batch import make_batch
from turncredit.trainer.head import default_chunk
from turncredit.trainer.policy import Policy

GIB = 1 << 30
PROBE = (36, 96)  # tokens of the two rows from which the memory of a token is found


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes at the peak, by what takes them."""

    weights: int
    gradients: int
    optimizer: int
    token: int  # what one token of a row needs between its forward and its backward pass
    row: int  # tokens of the longest row
    head: int  # logits of a chunk, and the head's gradient in float32
    cache_row: int  # keys and values of one sampled sequence of full length
    cache_rows: int  # sequences sampled side by side

    @property
    def fixed(self) -> int:
        """Of an update, whatever the length of its rows."""
        return self.weights + self.gradients + self.optimizer + self.head

    @property
    def update(self) -> int:
        """While the weights are updated."""
        return self.fixed + self.token * self.row

    @property
    def sampling(self) -> int:
        """While episodes are sampled."""
        return self.weights + self.optimizer + self.cache_row * self.cache_rows


def memory_need(policy: Policy, trainer: TrainerConfig, rollout: RolloutConfig) -> MemoryNeed:
    """Count what is fixed, and measure what a token costs with the model itself, on two short rows.

    `trainer.gradient_checkpointing` has to be in force by then, and the weights not yet sharded: what sharding saves is
    not counted.
    """
    parameters = list(policy.model.parameters())
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    vocabulary, width = policy.head.weight.shape
    positions = min(trainer.micro_batch_tokens, default_chunk(vocabulary, policy.device))
    whole_batch = rollout.groups * rollout.group_size * rollout.context_tokens
    config = policy.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = policy.model.dtype.itemsize if policy.config.dtype != "auto" or policy.device.type == "cpu" else 2
    return MemoryNeed(
        weights=sum(p.nbytes for p in parameters), gradients=trained, optimizer=2 * trained, token=_token_bytes(policy),
        row=max(rollout.context_tokens, min(trainer.micro_batch_tokens, whole_batch)),
        head=4 * (4 * positions * vocabulary + vocabulary * width),
        cache_row=2 * config.num_hidden_layers * heads * head_width * element * rollout.context_tokens,
        cache_rows=min(rollout.max_batch, rollout.groups * rollout.group_size))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on that device (the container's limit counts too)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) \
            - torch.cuda.memory_allocated(device)
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def refuse_what_does_not_fit(policy: Policy, trainer: TrainerConfig, rollout: RolloutConfig,
                             free: int | None = None) -> MemoryNeed:
    """The need, if it fits.

    Args:
        policy: with its weights in memory; they are not counted again.
        free: bytes beside the weights; by default what the policy's device has.
    Raises:
        UserError: an update or the sampling will not fit; names the setting to change, and to what.
    """
    need = memory_need(policy, trainer, rollout)
    room = (free_memory(policy.device) if free is None else free) + need.weights
    if max(need.update, need.sampling) <= room:
        return need
    what, size = ("an update", need.update) if need.update > room else ("sampling", need.sampling)
    advice = _for_updates(need, trainer, rollout, room) if need.update > room else _for_sampling(need, room)
    raise UserError(f"{what} needs about {size / GIB:.1f} GiB on {policy.device}, where {room / GIB:.1f} GiB can be "
                    f"had: {advice}")


def _for_updates(need: MemoryNeed, trainer: TrainerConfig, rollout: RolloutConfig, room: int) -> str:
    fitting = int((room - need.fixed) / need.token)
    if fitting >= rollout.context_tokens:
        return f"set trainer.micro_batch_tokens to {fitting} or less (it is {trainer.micro_batch_tokens})"
    if need.fixed >= room:
        return (f"weights, gradients and optimiser alone need {need.fixed / GIB:.1f} GiB; set model.dtype to bfloat16, "
                "or take a smaller model")
    shorter = f"set rollout.context_tokens to {fitting} or less (it is {rollout.context_tokens})"
    return shorter if trainer.gradient_checkpointing else f"set trainer.gradient_checkpointing to true, or {shorter}"


def _for_sampling(need: MemoryNeed, room: int) -> str:
    rows = (room - need.weights - need.optimizer) // need.cache_row
    if rows < 1:
        return "not one sequence of that length fits; lower rollout.context_tokens"
    return f"set rollout.max_batch to {rows} or less (it is {need.cache_rows})"


def _token_bytes(policy: Policy) -> int:
    """What autograd keeps for a token, and the gradients and intermediate results of one layer beside it."""
    few, many = (_kept_bytes(policy, tokens) for tokens in PROBE)
    kept = (many - few) / (PROBE[1] - PROBE[0])
    layers = policy.model.config.get_text_config().num_hidden_layers
    if not policy.checkpointed:
        return int(kept * (1 + 1 / layers))
    with policy.all_kept():  # one layer at a time is computed again, and then kept whole
        few, many = (_kept_bytes(policy, tokens) for tokens in PROBE)
    return int(kept + 2 * (many - few) / (PROBE[1] - PROBE[0]) / layers)


def _kept_bytes(policy: Policy, tokens: int) -> int:
    """Bytes that autograd holds after the forward pass of a row, weights left out: two responses to one prompt.

    A shared prompt's keys and values are laid beside each response's, which has its part in what a token takes.
    """
    third = tokens // 3
    ids = (np.arange(1, 1 + third) % 100).tolist()
    segments = [Segment.text(ids, "prompt"), Segment.sampled(ids, [0.0] * third)]
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = policy.hidden(make_batch([segments] * 2).to(policy.device))
    del hidden
    return sum(kept.values())
