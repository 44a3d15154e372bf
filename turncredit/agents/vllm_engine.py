"""vLLM in this process: token ids in, the sampled ids and their logprobs out, its weights replaced where it stands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.agents.adapter_files import NAME, AdapterFiles
from turncredit.agents.base import Request, Sample, Sampling
from turncredit.agents.vllm_server import free_cached
from turncredit.errors import EngineError, MissingExtra, UserError


class VllmEngine:
    """Samples with vLLM's own continuous batching and prefix cache.

    Args:
        folder: a model as transformers saves it, its output head not tied to the embeddings: vLLM's CPU build (0.32)
            leaves a tied head as it was when new weights come.
        max_context: in tokens; by default the model's.
        max_batch: sequences sampled side by side.
        dtype: "float32", "bfloat16" or "auto".
        cache_gb: memory for keys and values, where the engine runs on the CPU.
        memory_share: of a GPU's memory, for weights, keys and values.
        adapter: where a LoRA adapter is written that `load` takes in place of whole weights; None for none.
        sleep_level: how it gives its GPU's memory up while nobody samples: 1 keeps the weights in the CPU's memory; 2
            drops them, and takes those again that it was given last, as they then are; 0 for never.
        options: for vLLM's `LLM`, beyond these.
    Raises:
        MissingExtra: vllm is not installed.
        UserError: vLLM cannot load the model.
    """

    def __init__(self, folder: str | Path, max_context: int | None = None, max_batch: int = 64, dtype: str = "auto",
                 cache_gb: int = 1, memory_share: float = 0.4, adapter: AdapterFiles | None = None,
                 sleep_level: int = 0, **options: Any) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # else weights would have to be pickled
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cache_gb))
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
        except ImportError:
            raise MissingExtra("vllm", "vllm") from None
        self._vllm, self._adapter = vllm, adapter
        self._lora: Any = None  # the adapter that requests are sampled with
        self.policy_version = 0
        settings: dict[str, Any] = {
            "dtype": dtype, "max_model_len": max_context, "max_num_seqs": max_batch, "skip_tokenizer_init": True,
            "enable_prefix_caching": True, "gpu_memory_utilization": memory_share, "generation_config": "vllm",
            "disable_log_stats": True, "logprobs_mode": "raw_logprobs", **self._for_this_device()}
        if sleep_level:
            _refuse_sleepless(vllm)
            settings |= {"enable_sleep_mode": True}
        if adapter is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter.room}
        try:
            self._llm = vllm.LLM(model=str(folder), **{**settings, **options})
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"engine.name is 'vllm': it cannot load the model: {' '.join(str(error).split())[:300]}"
                            ) from error
        self._engine: Any = self._llm.llm_engine
        self.max_context = int(self._engine.model_config.max_model_len)
        self._sleep_level, self._asleep = sleep_level, False
        self._given: list[tuple[str, Any]] = []
        self._added = 0
        self._threads = self._threads_now()

    def _threads_now(self) -> int:
        import torch

        return torch.get_num_threads()

    def _keep_threads(self) -> None:
        """OpenMP counts for each thread of ours, and vLLM's attention fails where that is not as it loaded."""
        import torch

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def _for_this_device(self) -> dict[str, Any]:
        """On the CPU, compiling takes minutes, and version 0.32 dies of seeds where it reads a prompt in parts."""
        import torch

        return {} if torch.cuda.is_available() else {"enforce_eager": True, "enable_chunked_prefill": False}

    def generate(self, requests: Sequence[Request], sampling: Sampling,
                 stop_ids: Sequence[int]) -> list[Sample | EngineError]:
        """One sample a request."""
        stream = self.stream(sampling, stop_ids)
        numbers = stream.add(requests)
        samples: dict[int, Sample | EngineError] = {}
        while stream.unfinished:
            samples.update(stream.step())
        return [samples[number] for number in numbers]

    def stream(self, sampling: Sampling, stop_ids: Sequence[int]) -> _Requests:
        """Requests that join those that are being sampled at vLLM's next step."""
        return _Requests(self, sampling, stop_ids)

    def forget(self) -> None:
        """Nobody waits for what is under way; what was read of finished episodes is dropped."""
        waiting = list(self._engine.output_processor.request_states)
        if waiting:
            self._engine.abort_request(waiting, internal=True)
        if not self._asleep:
            self._llm.reset_prefix_cache()

    def load(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Take over new weights, and forget what others read.

        Args:
            weights: by the names that they have in the model's folder; with an `adapter`, its own.
        """
        self.forget()
        self._wake_for("weights")
        if self._adapter is None:
            self._given = list(weights)
            self._reload()
        else:
            path = str(self._adapter.write(weights))
            self._lora = self._vllm.lora.request.LoRARequest(NAME, 1, path, load_inplace=True)
            self._engine.add_lora(self._lora)
        self._wake_for("kv_cache")
        self._llm.reset_prefix_cache()

    def rest(self) -> None:
        """Give the GPU's memory up, if that is wanted; the next request takes it back."""
        if self._sleep_level and not self._asleep:
            self._llm.sleep(level=self._sleep_level if self._given else 1)
            self._asleep = True

    def _wake(self) -> None:
        """Take back what was given up, weights too."""
        if self._asleep:
            self._wake_for("weights")
            if self._sleep_level == 2 and self._given:
                self._reload()
            self._wake_for("kv_cache")

    def _wake_for(self, what: str) -> None:
        """In two steps, so that weights that are being read do not find the cache in their way."""
        if self._asleep:
            free_cached()
            self._llm.wake_up(tags=[what])
            self._asleep = what != "kv_cache"

    def _reload(self) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(self._given)})

    def close(self) -> None:
        """Free its memory."""
        self._engine.engine_core.shutdown()


def _refuse_sleepless(vllm: Any) -> None:
    if not vllm.platforms.current_platform.is_sleep_mode_available():
        raise UserError("engine.sleep is true: vLLM has no sleep mode on this platform, which has to be a GPU; set it "
                        "to false")


class _Requests:
    """A stream of requests, which vLLM samples side by side."""

    def __init__(self, engine: VllmEngine, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        self._owner, self._engine, self._stop_ids = engine, engine._engine, list(stop_ids)
        self._sampling = sampling
        self._under_way: dict[str, int] = {}
        self._refused: list[tuple[int, EngineError]] = []

    @property
    def unfinished(self) -> int:
        return len(self._under_way) + len(self._refused)

    def add(self, requests: Sequence[Request]) -> list[int]:
        self._owner._wake()
        numbers = []
        for request in requests:
            number = self._owner._added
            self._owner._added += 1
            numbers.append(number)
            try:
                self._engine.add_request(str(number), {"prompt_token_ids": list(map(int, request.context))},
                                         self._parameters(request), lora_request=self._owner._lora)
                self._under_way[str(number)] = number
            except Exception as error:  # a prompt that is too long, say: it is that episode's alone
                self._refused.append((number, EngineError(str(error))))
        return numbers

    def step(self) -> list[tuple[int, Sample | EngineError]]:
        ended: list[tuple[int, Sample | EngineError]] = [*self._refused]
        self._refused = []
        if not self._under_way:
            return ended
        self._owner._keep_threads()
        for output in self._engine.step():
            if output.finished and output.request_id in self._under_way:
                ended.append((self._under_way.pop(output.request_id), self._sample_of(output.outputs[0])))
        return ended

    def _parameters(self, request: Request) -> Any:
        return self._owner._vllm.SamplingParams(
            temperature=self._sampling.temperature, top_p=self._sampling.top_p, max_tokens=request.max_new_tokens,
            seed=request.seed % (1 << 31), stop_token_ids=self._stop_ids, ignore_eos=True, logprobs=0,
            detokenize=False, output_kind=self._owner._vllm.sampling_params.RequestOutputKind.FINAL_ONLY)

    def _sample_of(self, output: Any) -> Sample | EngineError:
        ids = list(output.token_ids)
        logprobs = np.array([found[token].logprob for token, found in zip(ids, output.logprobs or ())], np.float32)
        if not ids or len(logprobs) != len(ids) or not np.isfinite(logprobs).all():
            return EngineError(f"vLLM gave {len(ids)} tokens with {len(logprobs)} logprobs, or some that are no number "
                               f"({output.finish_reason})")
        plain = self._sampling.temperature == 1 and self._sampling.top_p == 1
        other = logprobs if plain else np.full(len(ids), np.nan, np.float32)  # vLLM tells one of the two
        return Sample(ids, logprobs, other, ended=ids[-1] in self._stop_ids)
