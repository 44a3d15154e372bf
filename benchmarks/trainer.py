"""What an update costs on a CPU, as ratios in one run: against the floor, against padding, against whole logits.

    python benchmarks/trainer.py [update] [memory] [packing] [head] [compile] [--rounds N]

`update`: GRPO and SC-GRPO (coupled and independent references) on the same groups of 8, all of them partly solved,
with prompt : response 1 : 1 and 1 : 4. The floor is a forward and backward pass of the same sequences, padded, with
logits at the responses alone. Where TRL is installed, the loss step of its GRPOTrainer stands beside them, on the same
batch and with the same micro-batches; that its gradient is ours is checked first.
Our student reads a prompt once for all responses that share it, GRPO's too; "own prompts" are the same groups with one
token changed in each prompt, which is a student that does not.
`memory`: by what an update of GRPO and of SC-GRPO raises the peak of a process of its own.
`packing`: forward and backward of sequences of 64 to 1,024 tokens, packed and padded, with the head left out.
`head`: logprobs and their gradient at 4,096 positions of a vocabulary of 151,936, in chunks and whole, each in a
process of its own, whose peak memory is read.
`compile`: an update of SC-GRPO with `trainer.compile` and without, and the seconds until the first one was compiled.

Variants take turns. Seconds are of the processor, in one thread: other load on the machine does not lengthen them, but
for the caches that it takes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import ModelConfig, TeacherConfig, TinyModel, TrainerConfig
from turncredit.episode import Episode, Segment
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.credit import route_group
from turncredit.trainer.credited import Credit, CreditedEpisode
from turncredit.trainer.head import Measures, score_tokens
from turncredit.trainer.learner import Learner
from turncredit.trainer.policy import Policy

GROUPS, GROUP_SIZE, MICRO_BATCH = 2, 8, 8  # episodes in a micro-batch of the padded variants
LENGTHS = {"1:1": (128, 128), "1:4": (48, 192)}  # tokens of prompt and response


def make_policy(context: int = 1024) -> Policy:
    """A Llama of 4 layers, 192 wide, with a vocabulary of 4,096."""
    tokenizer = learn_tokenizer(["a few words to learn from"], 300)
    tokenizer.add_tokens([f"<{i}>" for i in range(4096 - len(tokenizer))])
    model = make_tiny_model(TinyModel(width=192, layers=4, heads=6, context=context), tokenizer, 0)
    return Policy(model, tokenizer, ModelConfig(path="made"))


def make_groups(policy: Policy, prompt: int, response: int, own_prompts: bool = False) -> list[list[Episode]]:
    """Random tokens with the logprobs that the policy gives them: all ratios are 1.

    `own_prompts`: the first token of each episode's prompt is another, so that none is shared.
    """
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(GROUPS):
        ids = rng.integers(4, 4000, size=prompt)
        group = []
        for i in range(GROUP_SIZE):
            own = rng.integers(4, 4000, size=response)
            read = np.concatenate([[4000 + i], ids[1:]]) if own_prompts else ids
            segments = [Segment.text(read, "prompt"), Segment.sampled(own, np.zeros(response))]
            with torch.no_grad():
                scored = policy.scores(make_batch([segments])).logprobs.numpy()
            group.append(Episode("random", "random", "train", 0, "", "",
                                 [segments[0], Segment.sampled(own, scored)], group=len(groups), sample=i))
        groups.append(group)
    return groups


def credited(groups: Sequence[Sequence[Episode]], references: str | None) -> Credit:
    """GRPO's credit (None), or SC-GRPO's: the reference's response stands in the prompt, before its last tokens."""
    credit = Credit()
    for seed, group in enumerate(groups):
        ids = group[0].segments[0].token_ids
        verified = [i % 2 == 0 for i in range(len(group))]
        route = route_group([float(v) for v in verified], verified, seed, references == "coupled")
        assert route.references is not None
        for episode, advantage, reference in zip(group, route.advantages, route.references):
            read = np.concatenate([ids[:-4], group[reference].segments[1].token_ids, ids[-4:]])
            teacher = None if references is None else Segment.text(read, "prompt")
            credit.episodes.append(CreditedEpisode(episode, route.kind, float(advantage), teacher))
    return credit


def padded_parts(credit: Credit) -> list[dict[str, Tensor]]:
    """Micro-batches as TRL's trainer takes them; all prompts and all responses are of one length here."""
    parts = []
    for start in range(0, len(credit.episodes), MICRO_BATCH):
        chosen = credit.episodes[start:start + MICRO_BATCH]
        prompts, responses = (torch.tensor(np.stack([one.episode.segments[i].token_ids for one in chosen])).long()
                              for i in (0, 1))
        parts.append({"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": responses,
                      "completion_mask": torch.ones_like(responses),
                      "advantages": torch.tensor([one.advantage for one in chosen]).float(),
                      "old_per_token_logps": torch.tensor(np.stack([one.episode.logprobs for one in chosen])),
                      "num_items_in_batch": torch.tensor(responses.numel())})
    return parts


def floor(policy: Policy, parts: Sequence[dict[str, Tensor]]) -> None:
    """Forward and backward of the same tokens."""
    for part in parts:
        ids, targets = torch.cat([part["prompt_ids"], part["completion_ids"]], 1), part["completion_ids"]
        logits = policy.model(input_ids=ids, use_cache=False, logits_to_keep=targets.shape[1] + 1).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()


def trl_trainer(policy: Policy) -> Any | None:
    """A GRPOTrainer around the policy's model, in its settings for one update a batch; None where TRL is missing."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        return None
    total = GROUPS * GROUP_SIZE
    arguments = GRPOConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, loss_type="grpo", beta=0.0,
                           per_device_train_batch_size=MICRO_BATCH, num_generations=GROUP_SIZE, report_to=[],
                           gradient_accumulation_steps=total // MICRO_BATCH, gradient_checkpointing=False)
    trainer = GRPOTrainer(model=policy.model, processing_class=policy.tokenizer, args=arguments,
                          reward_funcs=lambda completions, **_: [0.0] * len(completions),
                          train_dataset=Dataset.from_list([{"prompt": "a"}] * total))
    trainer.current_gradient_accumulation_steps = total // MICRO_BATCH
    return trainer


def trl_step(trainer: Any, parts: Sequence[dict[str, Tensor]]) -> None:
    """Its loss and backward pass."""
    for part in parts:
        trainer._compute_loss(trainer.model, part).backward()


def gradient_of(policy: Policy, run: Callable[[], object]) -> Tensor:
    """After it, and removed."""
    run()
    gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    policy.model.zero_grad(set_to_none=True)
    return gradient


def learner_of(policy: Policy, algorithm: str, tokens: int, compiled: bool = False) -> Learner:
    """One whose steps are all but free of effect: the same weights are measured each time."""
    trainer = TrainerConfig(lr=1e-12, micro_batch_tokens=tokens, compile=compiled)
    return Learner(policy, make_algorithm(algorithm), trainer, TeacherConfig(), 0)


def backward_only(learner: Learner, credit: Credit) -> Callable[[], None]:
    """An update without the optimiser's step, which all variants would share."""
    learner.optimizer.step = lambda *_: None  # type: ignore[method-assign]
    learner.optimizer.zero_grad = lambda *_, **__: None  # type: ignore[method-assign]
    return lambda: learner.update(credit, 0) and None


def in_turns(variants: dict[str, Callable[[], object]], clear: Callable[[], None], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            clear()
            start = time.process_time()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_update(rounds: int) -> dict[str, Any]:
    """Ratios for each proportion of prompt to response."""
    results: dict[str, Any] = {}
    for name, (prompt, response) in LENGTHS.items():
        policy = make_policy()
        groups = make_groups(policy, prompt, response)
        tokens = MICRO_BATCH * (prompt + 2 * response)  # what eight teacher's sequences are, padded
        grpo = credited(groups, None)
        parts = padded_parts(grpo)
        variants: dict[str, Callable[[], object]] = {
            "floor": lambda: floor(policy, parts),  # noqa: B023
            "grpo": backward_only(learner_of(policy, "grpo", tokens), grpo)}
        for references in ("coupled", "independent"):
            variants[f"sc-grpo, {references}"] = backward_only(
                learner_of(policy, "sc-grpo", tokens), credited(groups, references))
        apart = make_groups(policy, prompt, response, own_prompts=True)
        wide = 2 * tokens  # so that as many episodes stand in a micro-batch
        variants["grpo, own prompts"] = backward_only(learner_of(policy, "grpo", wide), credited(apart, None))
        variants["sc-grpo, own prompts"] = backward_only(
            learner_of(policy, "sc-grpo", wide), credited(apart, "coupled"))
        trainer = trl_trainer(policy)
        result: dict[str, Any] = {}
        if trainer is not None:
            policy.model.eval()
            ours = gradient_of(policy, variants["grpo"])
            clipped = torch.nn.utils.get_total_norm([ours]).clamp_min(1.0)  # the learner clips to 1
            theirs = gradient_of(policy, lambda: trl_step(trainer, parts))  # noqa: B023
            theirs = theirs / theirs.norm().clamp_min(1.0)
            result["gradients_apart"] = float((ours / clipped - theirs).norm() / theirs.norm())
            variants["TRL's GRPO"] = lambda: trl_step(trainer, parts)  # noqa: B023
        seconds = in_turns(variants, lambda: policy.model.zero_grad(set_to_none=True), rounds)  # noqa: B023
        result |= {"seconds": {k: round(v, 3) for k, v in seconds.items()},
                   "over_floor": {k: round(v / seconds["floor"], 3) for k, v in seconds.items()},
                   "sc_over_grpo": {k: round(v / seconds["grpo"], 3) for k, v in seconds.items() if "sc-" in k},
                   "sc_over_grpo_own_prompts": {k: round(v / seconds["grpo, own prompts"], 3)
                                                for k, v in seconds.items() if "sc-" in k}}
        if "TRL's GRPO" in seconds:
            result["over_trl"] = {k: round(v / seconds["TRL's GRPO"], 3) for k, v in seconds.items()}
        results[name] = result
        print(name, json.dumps(result), flush=True)
    return results


def peak() -> int:
    """Bytes that this process held at most. (`getrusage` would count what held it before `exec` too.)"""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def update_in_process(algorithm: str, prompt: int, response: int, results: Any) -> None:
    """By how many bytes two updates raised the process's peak, with the optimiser's state of the first."""
    torch.set_num_threads(1)
    policy = make_policy()
    credit = credited(make_groups(policy, prompt, response), None if algorithm == "grpo" else "coupled")
    learner = learner_of(policy, algorithm, MICRO_BATCH * (prompt + 2 * response))
    before = peak()
    for step in range(2):
        learner.update(credit, step)
    results.put(peak() - before)


def measure_memory(rounds: int) -> dict[str, Any]:
    """SC-GRPO's peak over GRPO's, of what an update adds."""
    context, results = multiprocessing.get_context("spawn"), {}
    for name, (prompt, response) in LENGTHS.items():
        peaks: dict[str, list[int]] = {"grpo": [], "sc-grpo": []}
        for _ in range(rounds):
            for algorithm, found in peaks.items():
                answer = context.Queue()
                process = context.Process(target=update_in_process, args=(algorithm, prompt, response, answer))
                process.start()
                found.append(answer.get())
                process.join()
        added = {algorithm: statistics.median(found) for algorithm, found in peaks.items()}
        results[name] = {"added_mb": {k: round(v / 1e6) for k, v in added.items()},
                         "sc_over_grpo": round(added["sc-grpo"] / added["grpo"], 3)}
        print("memory", name, json.dumps(results[name]), flush=True)
    return results


def measure_packing(rounds: int) -> dict[str, Any]:
    """Tokens a second of 12 sequences of 64 to 1,024 tokens."""
    policy = make_policy(context=2048)
    rng = np.random.default_rng(0)
    lengths = np.exp(np.linspace(np.log(64), np.log(1024), 12)).astype(int)
    sequences = [rng.integers(4, 4000, size=n) for n in rng.permutation(lengths)]
    batch = make_batch([[Segment.text(ids[:1], "prompt"), Segment.sampled(ids[1:], np.zeros(len(ids) - 1))]
                        for ids in sequences])
    ids = torch.zeros(len(sequences), lengths.max(), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, :len(sequence)], mask[row, :len(sequence)] = torch.tensor(sequence), 1

    def padded() -> None:
        states = policy.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states[mask.bool()].square().sum().backward()

    variants = {"packed": lambda: policy.hidden(batch).square().sum().backward(), "padded": padded}
    seconds = in_turns(variants, lambda: policy.model.zero_grad(set_to_none=True), rounds)
    speed = {name: round(int(lengths.sum()) / value) for name, value in seconds.items()}
    result = {"tokens": int(lengths.sum()), "padded_to": ids.numel(), "tokens_per_second": speed,
              "packed_over_padded": round(seconds["padded"] / seconds["packed"], 2)}
    print("packing", json.dumps(result), flush=True)
    return result


def head_in_process(kind: str, positions: int, vocabulary: int, width: int, results: Any) -> None:
    """Seconds, and what the process's peak rose by."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=generator).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, width, generator=generator)).requires_grad_()
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    before = peak()
    start = time.process_time()
    if kind == "whole":
        logprobs = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    else:
        logprobs = score_tokens(hidden, weight, targets, measures=Measures(())).logprobs
    logprobs.sum().backward()
    seconds = time.process_time() - start
    assert hidden.grad is not None
    results.put((kind, seconds, peak() - before, float(hidden.grad.norm())))


def measure_head(rounds: int, positions: int = 4096, vocabulary: int = 151_936, width: int = 64) -> dict[str, Any]:
    """Chunks against whole logits."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, int, float]]] = {"whole": [], "chunks": []}
    for _ in range(rounds):
        for kind in found:
            results = context.Queue()
            process = context.Process(target=head_in_process, args=(kind, positions, vocabulary, width, results))
            process.start()
            _, *rest = results.get()
            process.join()
            found[kind].append(tuple(rest))
    seconds = {kind: statistics.median(v[0] for v in values) for kind, values in found.items()}
    peaks = {kind: max(v[1] for v in values) / 1e9 for kind, values in found.items()}
    result = {"seconds": {k: round(v, 2) for k, v in seconds.items()},
              "peak_gb": {k: round(v, 3) for k, v in peaks.items()},
              "time_of_whole": round(seconds["chunks"] / seconds["whole"], 3),
              "peak_of_whole": round(peaks["chunks"] / peaks["whole"], 3),
              "gradients_apart": abs(found["chunks"][0][2] / found["whole"][0][2] - 1)}
    print("head", json.dumps(result), flush=True)
    return result


def measure_compile(rounds: int) -> dict[str, Any]:
    """Compiled layers against the same ones as they are."""
    results: dict[str, Any] = {}
    for name, (prompt, response) in LENGTHS.items():
        policies = {"plain": make_policy(), "compiled": make_policy()}
        credit = credited(make_groups(policies["plain"], prompt, response), "coupled")
        tokens = MICRO_BATCH * (prompt + 2 * response)
        start = time.process_time()
        variants = {}
        for kind, policy in policies.items():
            variants[kind] = backward_only(learner_of(policy, "sc-grpo", tokens, compiled=kind == "compiled"), credit)
        plain, gradient = (gradient_of(policies[kind], run) for kind, run in variants.items())
        compiling = time.process_time() - start

        def clear() -> None:
            for policy in policies.values():  # noqa: B023
                policy.model.zero_grad(set_to_none=True)

        seconds = in_turns(variants, clear, rounds)
        results[name] = {"seconds": {k: round(v, 3) for k, v in seconds.items()}, "first_s": round(compiling, 1),
                         "compiled_over_plain": round(seconds["compiled"] / seconds["plain"], 3),
                         "gradients_apart": float((gradient - plain).norm() / plain.norm())}
        print("compile", name, json.dumps(results[name]), flush=True)
    return results


MEASUREMENTS = {"update": measure_update, "memory": measure_memory, "packing": measure_packing, "head": measure_head,
                "compile": measure_compile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", nargs="*", help="of " + ", ".join(MEASUREMENTS))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = given.measurements or list(MEASUREMENTS)
    print(json.dumps({name: MEASUREMENTS[name](given.rounds) for name in chosen}))


if __name__ == "__main__":
    main()
