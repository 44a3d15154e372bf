"""The engine that a run samples with: the trainer's own model, or one whose weights follow the trainer's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from turncredit.agents.adapter_files import AdapterFiles
from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.agents.base import Engine, Sampling
from turncredit.agents.engine_agent import EngineAgent
from turncredit.agents.fleet import PATIENCE_S, Fleet
from turncredit.agents.transformers_engine import TransformersEngine
from turncredit.agents.vllm_process import LocalServer
from turncredit.agents.vllm_server import VllmServers, refuse_sleepless
from turncredit.cluster.engines import placed
from turncredit.config import Config
from turncredit.errors import UserError
from turncredit.trainer.ahead import CopiedEngine
from turncredit.trainer.lora import adapter_settings
from turncredit.trainer.parallel import World
from turncredit.trainer.policy import Policy
from turncredit.trainer.weights import ACCEPTED, Agreement, Loads, Probes, WeightLink, export_untied


class Sampler(Protocol):
    """An engine that samples from a policy that is being trained."""

    engine: Engine

    def updated(self, version: int) -> dict[str, float]:
        """The policy has new weights; returns metrics about them."""

    def close(self) -> None:
        """End what was started for it."""


class Embedded:
    """The trainer's own model, or the whole copy of a sharded one: every change of a weight is seen at once."""

    def __init__(self, policy: Policy, max_batch: int) -> None:
        self.engine: Engine = TransformersEngine(policy.whole, max_batch, policy.precision)

    def updated(self, version: int) -> dict[str, float]:
        """Nothing has to be sent."""
        self.engine.policy_version = version
        return {}

    def close(self) -> None:
        """Nothing was started."""


class Followed:
    """An engine with weights of its own, which are the policy's after each update: compared, and refused if not.

    Args:
        link: between the two.
        world: the first process alone sends; all of them sample.
        folder: where weights were written; it goes too.
        close: ends what was started.
    """

    def __init__(self, link: WeightLink, world: World, folder: Path, close: Callable[[], None]) -> None:
        self._link, self._world, self._folder, self._close = link, world, folder, close
        self.engine: Engine = link.engine
        try:
            if world.first:
                link.try_out()
        except BaseException:
            self.close()
            raise
        world.wait()

    def updated(self, version: int) -> dict[str, float]:
        """Send the weights; the gap of logprobs as metrics."""
        found = {}
        if self._world.first:
            found = _gap(self._link.send(version))
            if isinstance(self.engine, VllmServers):
                found["servers_lost"] = self.engine.lost
        self._world.wait()
        if self._world.size > 1 and isinstance(self.engine, VllmServers):
            self.engine.follow(*self._world.gathered((self.engine.servers, self.engine.gone))[0])
        self.engine.policy_version = version
        return found

    def later(self, version: int) -> WeightsOnTheWay:
        """The policy's weights as they stand, to be loaded by another thread while the policy is trained."""
        return WeightsOnTheWay(self._link, version)

    def close(self) -> None:
        """End what was started."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)


class WeightsOnTheWay:
    """Weights of one version: loaded where the engine is driven, compared where the policy is."""

    def __init__(self, link: WeightLink, version: int) -> None:
        self._link, self._version, self._snapshot = link, version, link.snapshot()
        self._probes: Probes | None = None

    def load(self) -> None:
        """Give them to the engine."""
        self._probes = self._link.load(self._snapshot, self._version)

    def compare(self) -> dict[str, float]:
        """The gap of logprobs, as metrics.

        Raises:
            UserError: they did not arrive whole.
        """
        assert self._probes is not None, "they were not loaded yet"
        return _gap(self._link.compare(self._probes, self._snapshot))


def _gap(found: Agreement) -> dict[str, float]:
    return {f"sampler_gap_{name}": value for name, value in asdict(found).items()}


def sampler_for(config: Config, policy: Policy, folder: Path, version: int, world: World | None = None) -> Sampler:
    """The engine that the configuration names, with the policy's weights.

    Args:
        folder: where weights are written for engines that read them from files.
        version: updates that the policy has seen.
    Raises:
        MissingExtra, UserError: it cannot be had, or weights do not arrive whole.
    """
    world, wanted = world or World(), config.engine
    if config.rollout.staleness and world.size > 1:
        raise UserError(f"rollout.staleness is {config.rollout.staleness} with {world.size} processes: set it to 0")
    if wanted.name == "transformers" and config.rollout.staleness:
        copied = CopiedEngine(policy, config.rollout.max_batch)
        copied.policy_version = version
        link = WeightLink(copied, policy, ACCEPTED[_dtype(config, policy)], config.seed)
        return Followed(link, world, folder, lambda: None)
    if wanted.name == "transformers":
        sampler: Sampler = Embedded(policy, config.rollout.max_batch)
        sampler.engine.policy_version = version
        return sampler
    if wanted.name == "vllm" and world.size > 1:
        raise UserError(f"engine.name is 'vllm' with {world.size} processes: each would load a model of its own; "
                        "set it to 'vllm-server'")
    adapter = AdapterFiles(folder, adapter_settings(policy.model)) if wanted.lora == "adapter" else None
    engine, close = (_in_process if wanted.name == "vllm" else _server)(config, policy, folder, world, adapter)
    engine.policy_version = version
    accepted = wanted.accepted_difference or ACCEPTED[_dtype(config, policy)]
    return Followed(WeightLink(engine, policy, accepted, config.seed, adapter is not None), world, folder, close)


def _in_process(config: Config, policy: Policy, folder: Path, world: World,
                adapter: AdapterFiles | None) -> tuple[Loads, Callable[[], None]]:
    from turncredit.agents.vllm_engine import VllmEngine

    _export(config, policy, folder)
    engine = VllmEngine(folder, _context(config, policy), config.rollout.max_batch, _dtype(config, policy),
                        config.engine.cache_gb, config.engine.memory_share, adapter,
                        sleep_level=(1 if config.model.lora else 2) if config.engine.sleep else 0)
    return cast(Loads, engine), engine.close


def _server(config: Config, policy: Policy, folder: Path, world: World,
            adapter: AdapterFiles | None) -> tuple[Loads, Callable[[], None]]:
    fleet: Fleet | None = None
    close: Callable[[], None] = _nothing
    urls = list(config.engine.servers)
    if world.first:
        _export(config, policy, folder)
        if not urls:
            fleet, close = _started(config, policy, folder, adapter)
            urls = fleet.urls
    urls = world.gathered(urls)[0]
    try:
        if config.engine.sleep and fleet is None and world.first:
            for url in urls:
                refuse_sleepless(url)
        engine = VllmServers(urls, policy.chat, folder, adapter, fleet, config.engine.sleep,
                             _dtype(config, policy) if fleet is not None else "float32",  # others' is not known
                             concurrency=config.rollout.max_batch, timeout_s=config.rollout.engine_timeout_s)
    except BaseException:
        close()
        raise
    return cast(Loads, engine), close


def _nothing() -> None:
    """Nothing was started."""


def _started(config: Config, policy: Policy, folder: Path,
             adapter: AdapterFiles | None) -> tuple[Fleet, Callable[[], None]]:
    """Servers on this machine or on a cluster's nodes, and what ends them."""
    wanted = config.engine
    settings: dict[str, Any] = {
        "python": wanted.python, "max_context": _context(config, policy), "max_batch": config.rollout.max_batch,
        "dtype": _dtype(config, policy), "cache_gb": wanted.cache_gb, "memory_share": wanted.memory_share,
        "adapter_rank": None if adapter is None else adapter.room, "sleep": wanted.sleep,
        "start_s": wanted.start_timeout_s}
    if config.cluster.engines:
        return placed(config.cluster, folder, settings, wanted.restarts)
    fleet = Fleet(partial(LocalServer, folder, wait=False, **settings), 1, wanted.restarts,
                  wanted.start_timeout_s + PATIENCE_S)
    return fleet, fleet.close


def _export(config: Config, policy: Policy, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    export_untied(policy, folder, torch.float32, adapted=config.engine.lora == "merged")


def _context(config: Config, policy: Policy) -> int:
    """No longer than episodes are; with a token to spare, since vLLM counts the one that it samples."""
    return min(policy.max_context, config.rollout.context_tokens + 1)


def _dtype(config: Config, policy: Policy) -> str:
    """What the trainer computes in, unless another is asked for."""
    if config.engine.dtype != "auto":
        return config.engine.dtype
    in_bf16 = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and policy.device.type == "cuda")
    return "bfloat16" if in_bf16 else "float32"


def agent_for(engine: Engine, config: Config, policy: Policy, sampling: Sampling | None = None,
              ) -> EngineAgent | AsynchronousAgent:
    """An agent with that engine, on the configuration's schedule."""
    kind: Any = AsynchronousAgent if config.rollout.schedule == "asynchronous" else EngineAgent
    agent: EngineAgent | AsynchronousAgent = kind(engine, policy.chat, sampling, config.rollout.engine_timeout_s)
    return agent
