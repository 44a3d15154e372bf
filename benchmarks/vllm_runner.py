"""Our runner over bare vLLM: tokens a second on the same prompts and lengths, measured alternately in one run.

Needs vllm (see `make vllm`): OMP_NUM_THREADS=1 build/vllm/bin/python benchmarks/vllm_runner.py. Random weights in the
shape of SmolLM2-135M-Instruct with --layers layers. With --gaps: how far logprobs are from a float32 trainer's instead,
by engine and dtype, of these weights or, with --policy, of those in a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from turncredit.agents import AsynchronousAgent, Request, TransformersEngine
from turncredit.agents.tiny import learn_tokenizer
from turncredit.agents.vllm_engine import VllmEngine
from turncredit.agents.vllm_process import LocalServer
from turncredit.agents.vllm_server import VllmServers
from turncredit.config import ModelConfig
from turncredit.trainer.policy import Policy
from turncredit.trainer.weights import Agreement, agreement, export_untied


def policy_of(layers: int) -> Policy:
    """SmolLM2's shape, random weights, a small tokenizer: prompts are random ids."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, pad_token_id=None, initializer_range=0.05))
    return Policy(model, learn_tokenizer(["What is 12 + 7?"], 400), ModelConfig(path="."))


def bare(engine: VllmEngine, prompts: list[list[int]], limits: list[int]) -> float:
    """Seconds that vLLM's own `generate` takes."""
    parameters = [engine._vllm.SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, seed=i, logprobs=0,
                                              detokenize=False) for i, n in enumerate(limits)]
    began = time.perf_counter()
    outputs = engine._llm.generate([{"prompt_token_ids": p} for p in prompts], parameters, use_tqdm=False)
    took = time.perf_counter() - began
    assert [len(o.outputs[0].token_ids) for o in outputs] == limits
    return took


def ours(engine: VllmEngine, policy: Policy, prompts: list[list[int]], limits: list[int]) -> float:
    """Seconds that as many episodes take which ask for a turn each, by way of the agent."""
    agent = AsynchronousAgent(engine, policy.chat)

    async def run() -> list[Any]:
        seats = [agent.start(None) for _ in prompts]
        said = await asyncio.gather(*(seat.act(Request(p, n, i)) for i, (seat, p, n) in enumerate(
            zip(seats, prompts, limits))))
        for seat in seats:
            seat.end()
        return list(said)

    agent.chat = _Unstopped()  # as bare: no token ends a turn
    began = time.perf_counter()
    samples = asyncio.run(run())
    took = time.perf_counter() - began
    assert [len(s.token_ids) for s in samples] == limits
    return took


class _Unstopped:
    stop_ids: tuple[int, ...] = ()


def compare_speed(policy: Policy, batch: int, repeats: int) -> dict[str, float]:
    """Tokens a second of both, and their ratio by the clock and by this process's seconds on the CPU: best of each."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(100, 40_000, 60).tolist() for _ in range(batch)]
    limits = [int(n) for n in rng.integers(16, 65, batch)]
    with tempfile.TemporaryDirectory() as folder:
        export_untied(policy, Path(folder))
        engine = VllmEngine(folder, 512, batch, "float32")
    best = {"bare": float("inf"), "ours": float("inf")}
    on_cpu = dict(best)
    for _ in range(repeats):
        for name, measure in (("bare", lambda: bare(engine, prompts, limits)),
                              ("ours", lambda: ours(engine, policy, prompts, limits))):
            engine.forget()  # so that nobody reads from the other's cache
            began = time.process_time()
            best[name] = min(best[name], measure())
            on_cpu[name] = min(on_cpu[name], time.process_time() - began)
            print(f"{name}: {sum(limits) / best[name]:.1f} tokens a second", flush=True)
    return {"threads": engine._threads, "bare_tokens_per_second": sum(limits) / best["bare"],
            "ours_tokens_per_second": sum(limits) / best["ours"], "ratio": best["bare"] / best["ours"],
            "ratio_of_cpu_seconds": on_cpu["bare"] / on_cpu["ours"]}


def gaps(policy: Policy) -> Iterator[tuple[str, str, Agreement]]:
    """(engine, dtype, difference in nats) of each engine with the policy's weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_untied(policy, folder)
        for dtype in ("float32", "bfloat16"):
            copied = copy.deepcopy(policy.model).to(getattr(torch, dtype))
            yield "transformers", dtype, agreement(TransformersEngine(copied), policy, 0)
            inside = VllmEngine(folder, 512, 8, dtype)
            yield "vLLM, in process", dtype, agreement(inside, policy, 0)
            inside.close()
            server = LocalServer(folder, max_context=512, max_batch=8, dtype=dtype, start_s=1500)
            try:
                yield "vLLM, server", dtype, agreement(VllmServers([server.url], policy.chat, folder), policy, 0)
            finally:
                server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gaps", action="store_true")
    parser.add_argument("--policy", help="a model's folder, such as runs/quickstart/start; with --gaps")
    wanted = parser.parse_args()
    if wanted.policy and not wanted.gaps:
        parser.error("--policy goes with --gaps: the other measurement takes random ids of a large vocabulary")
    policy = Policy.load(ModelConfig(path=wanted.policy)) if wanted.policy else policy_of(wanted.layers)
    if wanted.gaps:
        for engine, dtype, gap in gaps(policy):
            print(f"{engine} | {dtype} | mean {gap.mean:.1e} | max {gap.max:.1e}", flush=True)
        return
    found = compare_speed(policy, wanted.batch, wanted.repeats)
    print(json.dumps({"layers": wanted.layers, "batch": wanted.batch}
                     | {name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
