"""One update of SC-GRPO, and sampling, on a GPU: seconds, tokens a second, peak memory, and whether scores agree.

    python benchmarks/gpu.py                 # the shape of Qwen3-0.6B, random weights; under 5 minutes on an H100
    python benchmarks/gpu.py --shape tiny    # seconds on a CPU: does it run at all

Against two implementations that stand in this file: `floor` is one forward and backward pass of the student's tokens
with cross-entropy on the generated positions; `plain` is the same update with whole float32 logits of student and
teacher. All use the same episodes, micro-batches, weights and precision. Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from turncredit.agents.base import Request, Sampling
from turncredit.agents.tiny import learn_tokenizer
from turncredit.config import ModelConfig, RolloutConfig, TeacherConfig, TrainerConfig
from turncredit.episode import Episode, Segment
from turncredit.trainer import head
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.credit import kl_weight, token_kl
from turncredit.trainer.credited import Credit, CreditedEpisode
from turncredit.trainer.learner import Learner
from turncredit.trainer.memory import memory_need
from turncredit.trainer.policy import Policy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PEAK_FLOPS = 989e12  # dense bf16, as the vendor states it for H100 and H200 (SXM)
GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the batch that it is measured on."""

    model: dict[str, int]
    groups: int
    group_size: int
    prompt: int
    response: int
    micro_batch_tokens: int
    chunks: tuple[int, ...]  # of [positions, vocabulary] elements at a time
    sample_tokens: int


def qwen3(vocabulary: int, width: int, layers: int, heads: int, head_dim: int, context: int) -> dict[str, int]:
    """Qwen3's proportions: three times as wide within an MLP, two heads to each pair of keys and values."""
    return {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": head_dim,
            "max_position_embeddings": context}


SHAPES = {
    "qwen3-0.6b": Shape(qwen3(151_936, 1024, 28, 16, 128, 4096), groups=2, group_size=8, prompt=512, response=1024,
                        micro_batch_tokens=12_288, chunks=(1 << 25, 1 << 27, 1 << 29), sample_tokens=128),
    "tiny": Shape(qwen3(600, 32, 2, 4, 8, 512), groups=2, group_size=4, prompt=16, response=32,
                  micro_batch_tokens=256, chunks=(1 << 12, 1 << 25), sample_tokens=16),
}


def make_policy(shape: Shape, dtype: str) -> Policy:
    """Random weights, scaled up so that predictions are not uniform. "auto": fp32 weights, computed in bf16."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape.model, tie_word_embeddings=True, initializer_range=0.05))
    model = model.to(DEVICE, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    tokenizer = learn_tokenizer(["a few words to learn from"], 300)
    return Policy(model, tokenizer, ModelConfig(path="random", dtype=dtype))


def make_credit(policy: Policy, shape: Shape) -> Credit:
    """Groups whose episodes all have a teacher (another response of the group stands in its prompt)."""
    rng = np.random.default_rng(0)
    vocabulary = shape.model["vocab_size"]
    episodes = []
    for group in range(shape.groups):
        prompt = rng.integers(vocabulary, size=shape.prompt)
        responses = rng.integers(vocabulary, size=(shape.group_size, shape.response))
        for i, response in enumerate(responses):
            segments = [Segment.text(prompt, "prompt"), Segment.sampled(response, np.zeros(len(response)))]
            reference = responses[0 if i else 1]
            teacher = Segment.text(np.concatenate([prompt[:-8], reference, prompt[-8:]]), "prompt")
            episode = Episode("random", "random", "train", 0, "", "", segments, group=group, sample=i)
            episodes.append(CreditedEpisode(episode, "partial-solve", 1.0 if i % 2 else -1.0, teacher))
    for one in episodes:  # as if these weights had sampled it: all ratios are 1
        with torch.no_grad():
            scored = policy.scores(make_batch([one.episode.segments]).to(policy.device)).logprobs
        one.episode.segments[1] = Segment.sampled(one.episode.segments[1].token_ids, scored.float().cpu().numpy())
    return Credit(episodes)


def micro_batches(shape: Shape, credit: Credit) -> list[list[CreditedEpisode]]:
    """Of equal size, since all episodes have one length: as many as fit with a teacher's prompt each."""
    size = max(1, shape.micro_batch_tokens // (2 * shape.response + shape.prompt))
    return [credit.episodes[i:i + size] for i in range(0, len(credit.episodes), size)]


def whole_logits(policy: Policy, segments: list[list[Segment]], response: int) -> torch.Tensor:
    """[episodes, response, vocabulary], of the positions before the generated tokens."""
    ids = torch.tensor(np.stack([np.concatenate([s.token_ids for s in one]) for one in segments]), device=DEVICE).long()
    with policy.precision():
        logits: torch.Tensor = policy.model(input_ids=ids, use_cache=False, logits_to_keep=response + 1).logits
    return logits[:, :-1].float()


def targets_of(part: list[CreditedEpisode]) -> torch.Tensor:
    return torch.tensor(np.stack([one.episode.segments[1].token_ids for one in part]), device=DEVICE).long()


def floor_update(policy: Policy, optimizer: torch.optim.Optimizer, shape: Shape, credit: Credit) -> None:
    """Forward and backward of the student's tokens, and the optimiser's step: no teacher, no credit."""
    for part in micro_batches(shape, credit):
        logits = whole_logits(policy, [one.episode.segments for one in part], shape.response)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets_of(part).flatten()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def plain_update(policy: Policy, optimizer: torch.optim.Optimizer, shape: Shape, credit: Credit) -> None:
    """SC-GRPO as one writes it down: whole logits of student and teacher."""
    for part in micro_batches(shape, credit):
        with torch.no_grad():
            read = [[one.teacher_prompt, *one.episode.response] for one in part]
            teacher = whole_logits(policy, read, shape.response)
        student = whole_logits(policy, [one.episode.segments for one in part], shape.response)
        kl = token_kl(teacher, student.detach())
        del teacher
        weights = kl_weight(kl, torch.ones_like(kl, dtype=torch.bool))
        logprobs = torch.log_softmax(student, -1).gather(-1, targets_of(part)[..., None])[..., 0]
        old = torch.tensor(np.stack([one.episode.logprobs for one in part]), device=DEVICE)
        advantages = torch.tensor([one.advantage for one in part], device=DEVICE)[:, None]
        ratio = (logprobs - old).exp()
        objective = weights * torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        (-objective.mean(1).sum() / len(credit.episodes)).backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measured(run: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Median seconds, and the peak of the memory above what stood there before."""
    try:
        run()
        synchronize()
        base, seconds = memory(), []
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() - base if DEVICE.type == "cuda" else 0
        return {"seconds": round(float(np.median(seconds)), 4), "peak_gib": round(peak / GIB, 3)}
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).split(". ")[0][:160]}
    finally:
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def memory() -> int:
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


def updates(shape: Shape, dtype: str, repeats: int) -> dict[str, Any]:
    """Every variant of one update, with tokens a second (the student's tokens) and the share of the peak FLOP/s."""
    policy = make_policy(shape, dtype)
    credit = make_credit(policy, shape)
    algorithms = {name: make_algorithm(name) for name in ("sc-grpo", "grpo")}
    results: dict[str, Any] = {}
    rollout = RolloutConfig(groups=shape.groups, group_size=shape.group_size,
                            context_tokens=shape.prompt + shape.response)

    def estimate(learner: Learner) -> float:
        """Of what an update takes beside the weights and the optimiser's moments, as `peak_gib` is."""
        need = memory_need(policy, learner.settings, rollout)
        return round((need.update - need.weights - need.optimizer) / GIB, 3)

    def learner_of(algorithm: str, **settings: Any) -> Learner:
        trainer = TrainerConfig(lr=1e-9, micro_batch_tokens=shape.micro_batch_tokens, **settings)
        return Learner(policy, algorithms[algorithm], trainer, TeacherConfig(), 0)

    learner = learner_of("sc-grpo")
    estimates = {"all kept": estimate(learner)}
    for name, update in (("floor", floor_update), ("plain", plain_update)):
        results[name] = measured(lambda: update(policy, learner.optimizer, shape, credit), repeats)  # noqa: B023
    default = head.CHUNK_ELEMENTS
    for elements in shape.chunks:
        head.CHUNK_ELEMENTS = elements
        results[f"sc-grpo, 2^{elements.bit_length() - 1} logits at a time"] = measured(
            lambda: learner.update(credit, 0), repeats)
    head.CHUNK_ELEMENTS = default
    alone = Credit([CreditedEpisode(one.episode, one.kind, one.advantage) for one in credit.episodes])
    learner = learner_of("grpo")
    results["grpo"] = measured(lambda: learner.update(alone, 0), repeats)
    learner = learner_of("sc-grpo", gradient_checkpointing=True)  # last: it stays on
    estimates["checkpointing"] = estimate(learner)
    results["sc-grpo, checkpointing"] = measured(lambda: learner.update(credit, 0), repeats)

    tokens = sum(len(one.episode.token_ids) for one in credit.episodes)
    read = sum(len(one.teacher_prompt.token_ids) + shape.response for one in credit.episodes)
    parameters = sum(p.numel() for p in policy.model.parameters())
    head_size = policy.head.weight.numel()
    scored = sum(one.episode.generated_count for one in credit.episodes)
    for name, result in results.items():
        if "seconds" in result:
            teacher = name not in ("floor", "grpo")  # without attention's products, and each head product once
            operations = (parameters - head_size) * (6 * tokens + 2 * read * teacher) + head_size * (
                6 + 2 * teacher) * scored
            result["tokens_per_second"] = round(tokens / result["seconds"])
            result["share_of_peak_flops"] = round(operations / result["seconds"] / PEAK_FLOPS, 4)
            if "seconds" in results["floor"]:
                result["over_floor"] = round(result["seconds"] / results["floor"]["seconds"], 3)
            if "seconds" in results["plain"]:
                result["over_plain"] = round(result["seconds"] / results["plain"]["seconds"], 3)
    return {"packs": policy.packs, "flex": policy.flex, "parameters": parameters, "student_tokens": tokens,
            "teacher_tokens": read, "variants": results, "estimated_gib": estimates}


def sampling(shape: Shape, dtype: str, rows: int, tolerance: float) -> dict[str, Any]:
    """Tokens a second of the engine and of `generate` for groups that share a prompt, and scored against sampled."""
    policy = make_policy(shape, dtype)
    rng = np.random.default_rng(1)
    prompts = rng.integers(shape.model["vocab_size"], size=(rows // 8, shape.prompt)).repeat(8, 0)
    requests = [Request(prompt.tolist(), shape.sample_tokens, seed) for seed, prompt in enumerate(prompts)]
    engine = policy.agent(Sampling(), max_batch=rows).engine
    ids = torch.tensor(prompts, device=DEVICE)

    def generate() -> None:
        with torch.no_grad(), policy.precision():
            policy.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                                  max_new_tokens=shape.sample_tokens, min_new_tokens=shape.sample_tokens,
                                  eos_token_id=None, pad_token_id=0)

    ours = measured(lambda: engine.generate(requests, Sampling(), []), 1)
    theirs = measured(generate, 1)
    result: dict[str, Any] = {"rows": rows, "engine": ours, "generate": theirs}
    for one in (ours, theirs):
        if "seconds" in one:
            one["tokens_per_second"] = round(rows * shape.sample_tokens / one["seconds"])
    samples = engine.generate(requests[:16], Sampling(), [])
    segments = [[Segment.text(r.context, "prompt"), Segment.sampled(s.token_ids, s.logprobs)]
                for r, s in zip(requests, samples)]
    with torch.no_grad():
        scored = torch.cat([policy.scores(make_batch(segments[i:i + 4]).to(policy.device)).logprobs
                            for i in range(0, len(segments), 4)])
    off = (scored.float().cpu() - torch.from_numpy(np.concatenate([s.logprobs for s in samples]))).abs()
    result["scored_against_sampled"] = {
        "largest": float(off.max()), "mean": float(off.mean()), "tolerance_of_the_mean": tolerance,
        "within": bool(off.mean() <= tolerance), "mean_logprob": float(scored.mean()), "tokens": len(off)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    start = time.perf_counter()
    import transformers

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "torch": torch.__version__, "transformers": transformers.__version__, "shape": given.shape}
    parts: dict[str, Callable[[], Any]] = {
        "updates, bf16 weights": lambda: updates(shape, "bfloat16", given.repeats),
        "updates, fp32 weights computed in bf16": lambda: updates(shape, "auto", given.repeats),
        "sampling, bf16": lambda: sampling(shape, "bfloat16", 64, 0.05),
        "sampling, fp32": lambda: sampling(shape, "float32", 16, 1e-4),
    }
    for name, part in parts.items():
        try:
            result[name] = part()
        except Exception as error:  # the other parts are worth having
            result[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(f"{time.perf_counter() - start:.0f} s: {name}: {json.dumps(result[name])}", flush=True)
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
