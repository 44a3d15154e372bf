"""Environments in the workers of a Ray cluster: a worker that is lost costs the episodes in it, and is replaced."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from turncredit.cluster.worker import Answer, Wanted, Worker, registrations
from turncredit.config import ClusterConfig, Config, EnvConfig
from turncredit.errors import MissingExtra, UserError
from turncredit.rollout import Environments, Here
from turncredit.trainer.parallel import World

log = logging.getLogger(__name__)

ANSWER_S = 5.0  # within which a worker says that it is alive
CLOSE_S = 10.0
PLACES = 3  # workers that an episode tries to start in


class WorkerLost(Exception):
    """The process or the node that an environment was in is gone."""


def environments_for(config: Config, world: World | None = None) -> Environments:
    """Where the configuration's environments are: in this process, or in a cluster's workers.

    Raises:
        MissingExtra, UserError: the cluster cannot be had, or its workers cannot make the environments.
    """
    if config.cluster.name == "none" or config.cluster.workers == 0:
        return Here()
    if world is not None and world.size > 1 and config.cluster.address is None:
        raise UserError(f"cluster.address is null with {world.size} processes: each would start a cluster of its own; "
                        "run `ray start --head` and set it to 'auto'")
    if world is not None and world.size > 1 and config.cluster.workers is None:
        raise UserError(f"cluster.workers is null with {world.size} processes: the first would take every CPU; set it "
                        "to how many each of them starts")
    there = RayEnvironments(config.cluster, config.rollout.step_timeout_s)
    try:
        warm = config.warmstart.envs if config.warmstart else []
        there.try_out([*config.envs, *warm, *config.evaluation.envs])
    except BaseException:
        there.close()
        raise
    return there


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker's place. `began` is its first sign of life, still to come where `node` is empty."""

    actor: Any
    began: Any
    node: str = ""
    process: int = 0
    holds: int = 0
    answers: bool = True


class RayEnvironments:
    """Makes environments in workers, each where the fewest are.

    Args:
        settings: the cluster's.
        step_timeout_s: the longest that a step may take; no call waits much longer.
    Raises:
        MissingExtra, UserError: Ray is not installed, no cluster is at the address, or it has no room for the workers.
    """

    def __init__(self, settings: ClusterConfig, step_timeout_s: float) -> None:
        self.settings, self._timeout_s = settings, step_timeout_s + ANSWER_S
        self.ray, self._ours = connected(settings)
        self.lost = 0  # workers, so far
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        try:
            self._known = registrations(self.ray.cloudpickle.dumps)
            self._count = settings.workers or max(1, int(self._cpus() // settings.worker_cpus))
            self._refuse_too_many()
            self._seats = [self._seat() for _ in range(self._count)]
            self._wait_for_all()
        except BaseException:
            self.close()
            raise

    def make(self, env_id: str, **arguments: Any) -> RemoteEnv:
        """An environment that is made in a worker once it is reset."""
        return RemoteEnv(self, next(self._numbers), env_id, arguments)

    def ready(self) -> None:
        """See which workers are alive, replace those that are not, and wait until there is one.

        Raises:
            UserError: there is none, and none could be started within `cluster.wait_s`.
        """
        until = time.monotonic() + self.settings.wait_s
        self._ask_all()
        while True:
            self._settle(replace=True)
            with self._lock:
                if any(seat.node and seat.answers for seat in self._seats):
                    return
            if time.monotonic() > until:
                raise UserError(f"cluster: no worker is left, and none could be started in {self.settings.wait_s:g} s "
                                f"({self._nodes()} nodes are alive): add nodes with `ray start`, and go on with "
                                "--resume")
            time.sleep(0.2)

    def try_out(self, envs: list[EnvConfig]) -> None:
        """Make every environment once on each node.

        Raises:
            UserError: one cannot be made there; names the environment and the node.
        """
        one_a_node = {seat.node: seat for seat in self._seats if seat.node}
        asked = {seat.actor.try_out.remote(Wanted(env.id, env.make_arguments)): (env, node)
                 for node, seat in one_a_node.items() for env in envs}
        for call, (env, node) in asked.items():
            try:
                answer: Answer = self.ray.get(call, timeout=self._timeout_s)
            except self.ray.exceptions.RayError as error:
                answer = Answer(raised=WorkerLost(first_line(error)))
            if answer.raised is not None:
                why = answer.raised if isinstance(answer.raised, UserError) else (
                    f"{type(answer.raised).__name__}: {answer.raised}")
                raise UserError(f"cluster: on node {node[:8]} {env.id} cannot be made: {why}") from None

    def workers(self) -> dict[str, list[int]]:
        """Process ids of the workers that are alive, by node."""
        self._settle(replace=False)
        with self._lock:
            nodes = {seat.node for seat in self._seats if seat.node}
            return {node: [seat.process for seat in self._seats if seat.node == node] for node in nodes}

    def close(self) -> None:
        """End the workers, and the cluster where it was started here."""
        with self._lock:
            seats, self._seats = getattr(self, "_seats", []), []
        closing = [seat.actor.close.remote() for seat in seats if seat.node]
        if closing:
            self.ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for seat in seats:
            self.ray.kill(seat.actor)
        if self._ours:
            self.ray.shutdown()

    # What `RemoteEnv` calls, from threads of its episodes.

    def take(self) -> _Seat:
        """The worker that holds the fewest environments; waits a moment where one is being replaced.

        Raises:
            WorkerLost: there is none.
        """
        until = time.monotonic() + self._timeout_s / 2
        while True:
            self._settle(replace=False)
            with self._lock:
                there = [seat for seat in self._seats if seat.node]
                if there:
                    seat = min(there, key=lambda seat: (not seat.answers, seat.holds))
                    seat.holds += 1
                    return seat
            if time.monotonic() > until:
                raise WorkerLost("no worker is left")
            time.sleep(0.1)

    def leave(self, seat: _Seat) -> None:
        """An environment is no longer in that worker."""
        with self._lock:
            seat.holds -= 1

    def answered(self, seat: _Seat, call: Callable[[Any], Any]) -> Answer:
        """What a call of the worker gives, within a bounded time.

        Raises:
            WorkerLost: it is gone, which is then seen to.
            TimeoutError: no answer.
        """
        errors = self.ray.exceptions
        try:
            answer: Answer = self.ray.get(call(seat.actor), timeout=self._timeout_s)
        except errors.GetTimeoutError:
            raise TimeoutError(f"the worker on node {seat.node[:8]} gave no answer in {self._timeout_s:g} s") from None
        except errors.RayTaskError:
            raise
        except errors.RayError as error:
            self._mourn(seat)
            raise WorkerLost(f"the worker on node {seat.node[:8]} is gone: {first_line(error)}") from None
        return answer

    def _mourn(self, seat: _Seat) -> None:
        """Put another worker in its place, once."""
        with self._lock:
            if seat not in self._seats:
                return
            self._seats.remove(seat)
            self.lost += 1
            self._seats.append(self._seat())
        log.warning("cluster: the worker on node %s was lost; another one is being started", seat.node[:8])
        self.ray.kill(seat.actor)  # where it is not quite dead, its place is needed

    def _settle(self, replace: bool) -> None:
        """Note who has begun; those that could not begin are replaced, if asked for: on a dying node they may fail."""
        with self._lock:
            waiting = {seat.began: seat for seat in self._seats if not seat.node}
            done = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0] if waiting else []
            for began in done:
                seat = waiting[began]
                try:
                    seat.node, seat.process = self.ray.get(began)
                except self.ray.exceptions.RayError as error:
                    log.warning("cluster: a worker could not be started: %s", first_line(error))
                    self._seats.remove(seat)
            while replace and len(self._seats) < self._count:
                self._seats.append(self._seat())

    def _ask_all(self) -> None:
        with self._lock:
            asked = {seat.actor.alive.remote(): seat for seat in self._seats if seat.node}
        done = set(self.ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)[0]) if asked else set()
        for call, seat in asked.items():
            seat.answers = call in done
            if seat.answers:
                try:
                    self.ray.get(call)
                except self.ray.exceptions.RayError:
                    self._mourn(seat)

    def _wait_for_all(self) -> None:
        until = time.monotonic() + self.settings.wait_s
        while not all(seat.node for seat in self._seats):
            self._settle(replace=False)
            begun = sum(bool(seat.node) for seat in self._seats)
            if len(self._seats) < self._count or time.monotonic() > until:
                raise UserError(f"cluster.workers is {self._count}: {begun} of them began within "
                                f"cluster.wait_s = {self.settings.wait_s:g} s; look at `ray status`, or set it lower")
            time.sleep(0.05)

    def _seat(self) -> _Seat:
        options = {"num_cpus": self.settings.worker_cpus, "max_concurrency": 10_000, "max_restarts": 0,
                   "scheduling_strategy": "SPREAD"}
        if self.settings.runtime_env:
            options["runtime_env"] = dict(self.settings.runtime_env)
        actor = self.ray.remote(Worker).options(**options).remote(self._known)
        return _Seat(actor, actor.alive.remote())

    def _cpus(self) -> float:
        return float(self.ray.available_resources().get("CPU", 0))

    def _refuse_too_many(self) -> None:
        needed, until = self._count * self.settings.worker_cpus, time.monotonic() + CLOSE_S
        while (free := self._cpus()) < needed and time.monotonic() < until:  # a run that has just ended still has some
            time.sleep(0.5)
        if needed > free:
            raise UserError(f"cluster.workers is {self._count} with cluster.worker_cpus {self.settings.worker_cpus:g}: "
                            f"the cluster has {free:g} CPUs free; set one of them lower, or add nodes")

    def _nodes(self) -> int:
        return sum(bool(node["Alive"]) for node in self.ray.nodes())


class RemoteEnv:
    """An environment in a worker, as far as a rollout uses one. A reset starts in another worker where one is lost."""

    def __init__(self, home: RayEnvironments, number: int, env_id: str, arguments: Mapping[str, Any]) -> None:
        self._home, self._number, self._wanted = home, number, Wanted(env_id, dict(arguments))
        self._seat: _Seat | None = None
        self._judges = False
        self.verifier_s = 0.0

    @property
    def unwrapped(self) -> RemoteEnv:
        """Itself: wrappers are in the worker."""
        return self

    def use_tool_format(self, name: str) -> None:
        """For when it is made, and as long as it lives."""
        self._wanted = Wanted(self._wanted.env_id, self._wanted.arguments, name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, in another worker where the last one is gone."""
        for left in reversed(range(PLACES)):
            if self._seat is None:
                self._seat = self._home.take()
            try:
                value: tuple[Any, dict[str, Any]] = self._call(
                    lambda actor: actor.reset.remote(self._number, self._wanted, seed, options))
                return value
            except WorkerLost:
                self._seat = None
                if not left:
                    raise
        raise AssertionError

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        value: tuple[Any, float, bool, bool, dict[str, Any]] = self._call(
            lambda actor: actor.step.remote(self._number, action))
        return value

    @property
    def verdict(self) -> Callable[[], Any] | None:
        """What the episode is worth as it stands; None where the environment has no verdict of its own."""
        return (lambda: self._call(lambda actor: actor.verdict.remote(self._number))) if self._judges else None

    def close(self) -> None:
        """Close it, without waiting for it."""
        if self._seat is not None:
            self._seat.actor.close.remote(self._number)
            self._home.leave(self._seat)
            self._seat = None

    def _call(self, call: Callable[[Any], Any]) -> Any:
        if self._seat is None:
            raise WorkerLost("the environment is closed")
        answer = self._home.answered(self._seat, call)
        self.verifier_s, self._judges = answer.verifier_s, answer.judges
        if answer.raised is not None:
            raise answer.raised
        return answer.value


def connected(settings: ClusterConfig) -> tuple[Any, bool]:
    """Ray, connected to the cluster, and whether that was done here.

    Raises:
        MissingExtra, UserError: Ray is not installed; nobody answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray") from None
    if ray.is_initialized():
        return ray, False
    if settings.address not in (None, "auto"):
        _refuse_silent(str(settings.address))
    try:
        ray.init(address=settings.address or "local", include_dashboard=False, log_to_driver=False,
                 logging_level=logging.ERROR) if settings.address is None else ray.init(
                     address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has one for each way that it fails
        raise UserError(f"cluster.address is {settings.address!r}: no Ray cluster could be joined there "
                        f"({first_line(error)}); start one with `ray start --head`") from None
    return ray, True


def _refuse_silent(address: str) -> None:
    """Ray tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"cluster.address is {address!r}: write it as host:port, such as 10.0.0.1:6379, or 'auto'")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cluster.address is {address!r}: nobody answers there ({error}); start a cluster with "
                        "`ray start --head`, or leave cluster.address out") from None


def first_line(error: BaseException) -> str:
    """The first line of what Ray says, which goes on for many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
