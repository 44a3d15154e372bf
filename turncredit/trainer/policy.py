"""The policy: a causal language model with its tokenizer and chat format, loaded, scored and saved."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.agents.base import Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.agents.engine_agent import EngineAgent
from turncredit.agents.transformers_engine import TransformersEngine
from turncredit.config import ModelConfig
from turncredit.episode import Segment
from turncredit.errors import UserError
from turncredit.trainer.attention import Packing, can_be_packed, packed
from turncredit.trainer.batch import Batch, make_batch
from turncredit.trainer.compiled import CompiledLayers, layers_of
from turncredit.trainer.head import Measures, TokenScores, score_tokens
from turncredit.trainer.lora import adapter_off, base_of, has_adapter, load_adapter, merged_weights
from turncredit.trainer.parallel import World
from turncredit.trainer.timing import Seconds

log = logging.getLogger(__name__)


class Policy:
    """A model that is sampled from, scored and trained.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        config: how the chat template is treated, and the precision.
    Raises:
        UserError: the template can't be appended to, or the model's head does more than a linear projection.
    """

    def __init__(self, model: Any, tokenizer: Any, config: ModelConfig) -> None:
        # Never in training mode: dropout would make what is scored another policy than the one that sampled.
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        self._whole: Any = None  # a copy of the model, where its weights are shared out over processes
        if config.chat_template is not None:
            if not config.chat_template.is_file():
                raise UserError(f"model.chat_template {str(config.chat_template)!r}: there is no such file")
            tokenizer.chat_template = config.chat_template.read_text()
        self.chat = ChatFormat(tokenizer, config.history, config.template_options)
        self.device: torch.device = model.device
        self.seconds = Seconds(self.device)  # on "teacher" and "student"
        self.max_context = int(model.config.max_position_embeddings)
        self._checkpointed: list[Any] = []
        self._compiled: CompiledLayers | None = None
        self._adapter_off = False
        refuse_unusual_head(model)
        self.flex = can_be_packed(self.model) and self._takes_flex and self._flex_is_exact()
        self.packs = self.flex or (can_be_packed(self.model) and self._reads_packed_rows())

    @classmethod
    def load(cls, config: ModelConfig) -> Policy:
        """Load `config.path` (a folder, or a name on the hub); with its base where an adapter stands there."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert config.path is not None
        device = pick_device(config.device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.path)
            # Master weights are fp32 unless bf16 was asked for by name; "auto" computes in bf16 on GPUs.
            dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
            base = base_of(config.path)
            model = AutoModelForCausalLM.from_pretrained(base or config.path, dtype=dtype)
            if base is not None:
                load_adapter(model, config.path)
            model = model.to(device)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"model.path {config.path!r} cannot be loaded: {reason}") from error
        return cls(model, tokenizer, config)

    @property
    def head(self) -> Any:
        """The output projection: `weight` [vocabulary, width], maybe `bias`."""
        return self.model.get_output_embeddings()

    def agent(self, sampling: Sampling | None = None, max_batch: int = 64, schedule: str = "lockstep",
              timeout_s: float = 1800.0) -> EngineAgent | AsynchronousAgent:
        """An agent that samples from these weights as they stand."""
        kind = AsynchronousAgent if schedule == "asynchronous" else EngineAgent
        return kind(TransformersEngine(self.whole, max_batch, self.precision), self.chat, sampling, timeout_s)

    def shard(self, world: World) -> None:
        """Share the weights out over the processes, and keep a whole copy to sample from.

        Raises:
            UserError: there is one process, or the model cannot be shared out.
        """
        if not self.packs:
            raise UserError(f"trainer.sharding is 'full': {type(self.model).__name__} cannot read packed rows, and its "
                            "processes would not take the same passes; set it to 'none'")
        from turncredit.trainer.sharding import shard_model

        self._whole = copy.deepcopy(self.model)
        shard_model(self.model, last_hidden_states, world)

    @property
    def sharded(self) -> bool:
        """Whether the weights are shared out over processes."""
        return self._whole is not None

    @property
    def whole(self) -> Any:
        """What is sampled from and saved: the model, or a copy of it where its weights are shared out."""
        return self._whole if self.sharded else self.model

    def state_of(self, optimizer: torch.optim.Optimizer) -> Any:
        """What of an optimiser of these weights is saved and restored: itself, or its shards put together."""
        if not self.sharded:
            return optimizer
        from turncredit.trainer.sharding import WholeState

        return WholeState(optimizer)

    def refresh(self) -> None:
        """Bring the copy that is sampled from up to date, where there is one; every process has to."""
        if self.sharded:
            from turncredit.trainer.sharding import copy_whole

            copy_whole(self.model, self.whole)

    def checkpoint_layers(self) -> None:
        """From now on a backward pass computes each layer again, from its input, instead of keeping what is in it.

        Raises:
            UserError: the model cannot.
        """
        layers = layers_of(self.model)
        if not layers:
            raise UserError(f"trainer.gradient_checkpointing is true: {type(self.model).__name__} has no layers that "
                            "can be checkpointed; set it to false")
        for layer in layers:
            layer.gradient_checkpointing = True
            # Nothing is drawn within a layer: dropout is off. (A function, not a method: a copied model would bring a
            # copied policy along.)
            layer._gradient_checkpointing_func = partial(
                checkpoint, use_reentrant=False, preserve_rng_state=False,
                context_fn=lambda: self._when_computed_again())
        self._checkpointed = layers

    def _when_computed_again(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What a checkpointed layer runs in: as it stands the first time, and as it stood then the second time."""
        return nullcontext(), packed(self.model) if self.packs else nullcontext()

    def compile_layers(self) -> None:
        """From now on packed rows are read by layers that torch.compile has been over; sampling goes on as before.

        Raises:
            UserError: the model has no such layers, or they cannot be compiled here, or compute something else then.
        """
        name, layers = type(self.model).__name__, layers_of(self.model)
        if not self.packs or not layers:
            what = "cannot read packed rows" if layers else "has no layers that can be told apart"
            raise UserError(f"trainer.compile is true: {name} {what}; set it to false")
        self._compiled = CompiledLayers(layers)
        try:
            exact = self._packed_is_exact()
        except Exception as error:  # whatever a compiler does
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"trainer.compile is true: {name} cannot be compiled here ({reason}); set it to false"
                            ) from error
        if not exact:
            raise UserError(f"trainer.compile is true: {name} computes something else once it is compiled; set it to "
                            "false")

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden states from which the generated tokens are predicted, [generated, width].

        Under autocast a model leaves them in float32, and itself projects them in bf16: so they are handed on.
        """
        adapter = adapter_off(self.model) if self._adapter_off else nullcontext()
        with self.precision(), self._checkpointing(), adapter:
            states = self._packed_states(batch) if self.packs else self._separate_states(batch)
            scored, kind = states[batch.scored], self.device.type
            return scored.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else scored

    def _packed_states(self, batch: Batch, packing: Packing | None = None) -> Tensor:
        """Of every token of the row, [tokens, width], in one pass."""
        # A mask with four axes is taken as it is, and so none is made; attention goes by the packing alone.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)
        with packed(self.model), nullcontext() if self._compiled is None else self._compiled.used():
            compute = self.model.last_hidden_states if self.sharded else partial(last_hidden_states, self.model)
            states: Tensor = compute(
                input_ids=batch.input_ids[None], position_ids=batch.positions[None], attention_mask=unused,
                use_cache=False, packing=packing or Packing(batch.blocks, self.flex))
        return states[0]

    def _separate_states(self, batch: Batch) -> Tensor:
        """The same for models that cannot read packed rows: a pass for each block, with its prefix."""
        ids, parts = batch.input_ids, []
        for block in batch.blocks:
            read = torch.cat([ids[block.prefix_start:block.prefix_stop], ids[block.start:block.stop]])[None]
            states = self.model.base_model(input_ids=read, use_cache=False).last_hidden_state
            parts.append(states[0, block.prefix:])
        return torch.cat(parts)

    def scores(self, batch: Batch, conditioned: Batch | None = None, measures: Measures | None = None,
               teacher: Policy | None = None) -> TokenScores:
        """Logprobs and other measures of the generated tokens, [generated].

        Args:
            batch: what the student reads.
            conditioned: what the teacher reads, with the same generated tokens; None for no teacher.
            measures: what else is computed; by default entropy and, with a teacher, its KL, both without gradient.
            teacher: another policy of the same vocabulary that takes the teacher's part; by default this one.
        """
        teacher_hidden = teacher_weight = teacher_bias = None
        if conditioned is not None:
            with torch.no_grad(), self.seconds.on("teacher"):
                teacher_hidden = (teacher or self).hidden(conditioned)
            if teacher is not None:  # else it has the student's head, which is cast once for both
                teacher_weight, teacher_bias = teacher.output()
        with self.seconds.on("student"):
            hidden = self.hidden(batch)  # after the teacher, so that its activations do not stand beside these
            weight, bias = self.output()
            return score_tokens(hidden, weight, batch.targets, teacher_hidden, bias, measures=measures,
                                teacher_weight=teacher_weight, teacher_bias=teacher_bias)

    def output(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight [vocabulary, width], and its bias [vocabulary]."""
        return self.head.weight, getattr(self.head, "bias", None)

    def precision(self) -> AbstractContextManager[Any]:
        """bf16 autocast where the device has it and the configuration leaves it open."""
        if self.config.dtype == "auto" and self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    @property
    def checkpointed(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return bool(self._checkpointed)

    @contextmanager
    def all_kept(self) -> Iterator[None]:
        """Without checkpointing for a while."""
        layers, self._checkpointed = self._checkpointed, []
        try:
            yield
        finally:
            self._checkpointed = layers

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """transformers checkpoints layers in training mode: the layers alone are put into it, not what is in them."""
        layers = self._checkpointed if torch.is_grad_enabled() else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def copied(self) -> Policy:
        """The same policy with weights of its own, to be scored only."""
        other = copy.copy(self)
        other.model, other._whole = copy.deepcopy(self.whole).requires_grad_(False), None
        other._checkpointed, other._compiled = [], None
        return other

    def without_adapter(self) -> Policy:
        """The policy that this one was before its adapter was trained: the same weights in memory, to be scored only.

        Raises:
            ValueError: there is no adapter.
        """
        if not has_adapter(self.model):
            raise ValueError("a policy without an adapter has no other self")
        base = copy.copy(self)
        base._adapter_off, base._checkpointed, base._compiled = True, [], None
        return base

    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer, as transformers loads them; of an adapted model, the adapter."""
        self.whole.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def export(self, folder: Path) -> None:
        """Write the whole policy, its adapter merged into the weights where it has one."""
        if not has_adapter(self.model):
            return self.save(folder)
        plain = copy.copy(self.model)
        plain._hf_peft_config_loaded = False  # else transformers writes the adapter alone
        plain.save_pretrained(folder, state_dict=merged_weights(self.model))
        self.tokenizer.save_pretrained(folder)
        return None

    @property
    def tool_calls(self) -> str:
        """The format in which it writes tool calls."""
        return self.config.tool_calls

    def digest(self) -> str:
        """Of the beginning of every parameter: it changes where a training step changed them."""
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().flatten()[:4096].to("cpu", torch.float32)
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + flat.numpy().tobytes())
        return digest.hexdigest()

    def _reads_packed_rows(self) -> bool:
        """Whether all layers attend as a packing says: some architectures have others, or never hear of it."""
        try:
            return self._packed_is_exact()
        except (TypeError, ValueError, RuntimeError):  # an argument or a mask that it does not take
            return False

    @property
    def _takes_flex(self) -> bool:
        return self.device.type == "cuda" and self.config.attention == "auto"

    def _flex_is_exact(self) -> bool:
        """Whether one kernel for the whole row works here, forward and backward, and computes the same."""
        self.flex = True
        try:
            exact, reason = self._packed_is_exact(), "it computes something else"
        except Exception as error:  # whatever a compiler does
            exact, reason = False, " ".join(str(error).split())[:200]
        if not exact:
            log.warning("%s: packed rows are attended to block by block, since flex attention cannot be used: %s",
                        type(self.model).__name__, reason)
        self.flex = False
        return exact

    def _packed_is_exact(self) -> bool:
        """Whether hidden states of a packed row are those of its sequences; and, of flex attention, a gradient too."""
        times = max(1, min(20, self.max_context // 6)) if self.flex else 1  # more than one tile of its kernel
        prompt, responses = Segment.text([1, 2, 3] * times, "prompt"), ([4, 5] * times, [6, 7, 8] * times)
        sequences = [[prompt, Segment.text(ids, "user")] for ids in responses]
        batch = make_batch(sequences).to(self.device)
        packing = Packing(batch.blocks, self.flex)
        trained = [p for p in self.model.parameters() if p.requires_grad][:1]
        with self.precision(), torch.set_grad_enabled(self.flex and bool(trained)):
            states = [self._packed_states(batch, packing), self._separate_states(batch)]
            turned = torch.arange(states[0].numel(), device=self.device).sin().view_as(states[0])
            gradients = [torch.autograd.grad((one * turned).sum(), trained)[0] for one in states if one.requires_grad]
        layers = self.model.config.get_text_config().num_hidden_layers
        exact = states[0].dtype.itemsize >= 4 and isinstance(self.precision(), nullcontext)
        tolerance = 1e-4 if exact else 5e-2
        return packing.calls == layers and _are_close(states, tolerance) and _are_close(gradients, 4 * tolerance)


def _are_close(pair: Sequence[Tensor], tolerance: float) -> bool:
    """Two tensors of the same shape; or none."""
    return not pair or bool((pair[0] - pair[1]).norm() <= tolerance * pair[1].norm())


@torch.no_grad()
def refuse_unusual_head(model: Any) -> None:
    """Some models scale or cap their logits: scoring them from hidden states would silently be wrong.

    Raises:
        UserError: the model does, or its logits are not numbers.
    """
    ids = torch.arange(1, 9, device=model.device)[None]
    logits = model(input_ids=ids, use_cache=False).logits
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    if logits.isnan().any():
        raise UserError(f"model {type(model).__name__}: its logits are not numbers, so its weights are broken")
    if not torch.allclose(model.get_output_embeddings()(states), logits, rtol=1e-3, atol=1e-3):
        raise UserError(f"model {type(model).__name__}: its logits are not a linear projection of its last "
                        "hidden state (scaled or capped logits are not supported)")


def last_hidden_states(model: Any, **inputs: Any) -> Tensor:
    """What the base model makes of its inputs, behind its last layer."""
    states: Tensor = model.base_model(**inputs).last_hidden_state
    return states


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device is 'cuda': torch finds no GPU here; set it to 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
