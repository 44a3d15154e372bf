"""Supervised warm start on verified demonstrations, with the same segments and masks as reinforcement learning.

A share of the conversations has a reference in the system prompt, put there as SC-GRPO's teacher gets it: a
policy that never learnt to use a reference is no teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from turncredit.agents.chat import ChatFormat
from turncredit.agents.scripted import ScriptedAgent, expert
from turncredit.config import Config, WarmstartConfig
from turncredit.envs import TextEnv, make
from turncredit.episode import Episode, Segment
from turncredit.errors import UserError
from turncredit.evaluate import evaluate
from turncredit.rollout import Budget, Rollout
from turncredit.seeds import seed_of
from turncredit.trainer.batch import Batch, make_batch, pack_by_tokens
from turncredit.trainer.head import score_tokens
from turncredit.trainer.policy import Policy
from turncredit.trainer.tasks import TaskSampler
from turncredit.trainer.teacher import GUIDE, teacher_context

AT_ONCE = 64


def demonstrations(settings: WarmstartConfig, chat: ChatFormat, tool_calls: str, count: int,
                   seed: int) -> list[Episode]:
    """Episodes of the environments' scripted solutions; only those that the verifier passed.

    Raises:
        UserError: an environment has no scripted solution, or none of its episodes passed.
    """
    rollout = Rollout(ScriptedAgent(expert, chat), chat, Budget(1 << 16, 1 << 20, 1 << 20), tool_calls)
    sampler = TaskSampler(settings.envs, seed_of(seed, "demonstrations"))
    episodes: list[Episode] = []
    for step in range((count + AT_ONCE - 1) // AT_ONCE):
        groups = rollout.sample_groups(sampler.tasks(step, AT_ONCE), 1, seed)
        episodes += [e for group in groups for e in group.episodes]
    rollout.close()
    passed = [e for e in episodes if e.passed]
    for first in {e.env_id: e for e in reversed(episodes)}.values():
        if not any(e.env_id == first.env_id for e in passed):
            raise UserError(f"warmstart.envs: no demonstration of {first.env_id} passed its verifier "
                            f"({first.stop}: {first.error or 'wrong'})")
    return passed[:count]


def texts_of(settings: WarmstartConfig, tool_calls: str, seed: int, guide: str | None = None,
             count: int = 400) -> list[str]:
    """What the environments and their scripted solutions say: what a tokenizer is learnt from.

    Raises:
        UserError: an environment has no scripted solution.
    """
    texts = [guide or GUIDE, "Agent: ", "Environment: ", "Tool: "]
    sampler = TaskSampler(settings.envs, seed_of(seed, "texts"))
    for task in sampler.tasks(0, count):
        env = make(task.env_id, **task.arguments).unwrapped
        if not isinstance(env, TextEnv) or not env.solvable:
            raise UserError(f"warmstart.envs: {task.env_id} has no scripted solution to learn from: write its "
                            "expert_action, or leave it out")
        env.use_tool_format(tool_calls)
        observation, info = env.reset(seed=task.seed, options=task.reset_options)
        texts += [str(info["instructions"]), observation]
        over = False
        while not over:
            action = env.expert_action()
            observation, _, terminated, truncated, _ = env.step(action)
            texts += [action, observation]
            over = terminated or truncated
    return texts


def warm_start(config: Config, policy: Policy, on_step: Callable[[int, float, float | None], None]) -> float | None:
    """Train until `steps` or `until_success`; `on_step` gets the step, the loss and the last success rate.

    Demonstrations that the model cannot read as a whole are left out.

    Returns:
        The success rate at the last check, None where none was asked for.
    Raises:
        UserError: no demonstration to learn from, or a loss that is not finite.
    """
    settings = config.warmstart
    assert settings is not None
    written = demonstrations(settings, policy.chat, config.model.tool_calls, settings.demonstrations, config.seed)
    shown = [e for e in written if len(e.token_ids) <= policy.max_context]
    if not shown:
        raise UserError(f"warmstart.envs: no demonstration fits into the model's context of {policy.max_context} "
                        f"tokens (the first has {len(written[0].token_ids)}): take an easier level")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=settings.lr, betas=(0.9, 0.95),
                                  weight_decay=0.01)
    success: float | None = None
    for step in range(settings.steps):
        rng = np.random.default_rng(seed_of(config.seed, "warmstart", step))
        batch = [_conversation(config, policy, shown[i], rng.random() < settings.with_reference)
                 for i in rng.integers(len(shown), size=settings.batch)]
        for group in optimizer.param_groups:  # a linear warm-up, then a linear way down to a tenth
            group["lr"] = settings.lr * min(1.0, (step + 1) / 20, 1.0 - 0.9 * step / settings.steps)
        loss = _supervised_step(policy, optimizer, batch, config.trainer.micro_batch_tokens, settings.label_smoothing)
        if not np.isfinite(loss):
            raise UserError(f"the warm start's loss is {loss} at step {step}: set warmstart.lr below {settings.lr:g}")
        if settings.until_success is not None and (step + 1) % settings.check_every == 0:
            success = _success(config, policy)
            if success >= settings.until_success:
                on_step(step, loss, success)
                break
        on_step(step, loss, success)
    return success


def _conversation(config: Config, policy: Policy, episode: Episode, with_reference: bool) -> list[Segment]:
    if not with_reference:
        return episode.segments
    context = teacher_context(policy.chat, episode, episode, config.teacher.guide or GUIDE,
                              config.teacher.reference_tokens, policy.max_context)
    return episode.segments if context is None else [context.prompt, *episode.response]


def _supervised_step(policy: Policy, optimizer: torch.optim.Optimizer, conversations: Sequence[list[Segment]],
                     budget: int, smoothing: float) -> float:
    """One step on the mean negative logprob of the demonstrations' own tokens, with smoothed labels."""
    total = sum(len(s.token_ids) for c in conversations for s in c if s.generated)
    loss = 0.0
    for part in pack_by_tokens([[c] for c in conversations], budget):
        batch = make_batch([conversations[i] for i in part]).to(policy.device)
        part_loss = -_smoothed_logprobs(policy, batch, smoothing).sum() / total
        part_loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        loss += float(part_loss.detach())
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _smoothed_logprobs(policy: Policy, batch: Batch, smoothing: float) -> Tensor:
    """(1 - e) log p(target) + e times the mean of log p over the vocabulary, [generated] (arXiv 1512.00567, section 7).

    The mean needs no logits: it is the hidden state times the head's mean row, less the log of the partition sum.
    """
    hidden = policy.hidden(batch)
    weight, bias = policy.output()
    logprobs = score_tokens(hidden, weight, batch.targets, bias=bias).logprobs
    if not smoothing:
        return logprobs
    hidden = hidden.to(logprobs.dtype)
    logits = (hidden * weight[batch.targets]).sum(-1)
    mean_logits = hidden @ weight.mean(0, dtype=hidden.dtype)
    if bias is not None:
        logits, mean_logits = logits + bias[batch.targets], mean_logits + bias.mean()
    mean_logprobs = mean_logits - (logits - logprobs)
    return (1 - smoothing) * logprobs + smoothing * mean_logprobs


def _success(config: Config, policy: Policy) -> float:
    """The share of training tasks that the policy solves, sampled at temperature 1."""
    budget = Budget(config.rollout.turn_tokens, config.rollout.episode_tokens, config.rollout.context_tokens)
    rollout = Rollout(policy.agent(max_batch=config.rollout.max_batch), policy.chat, budget, config.model.tool_calls)
    scores = evaluate(rollout, config.envs, 64, 1, seed_of(config.seed, "warmstart check"))
    rollout.close()
    return float(np.mean([s.avg or 0.0 for s in scores]))
