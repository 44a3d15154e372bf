"""vLLM servers on a Ray cluster's nodes, each where it has GPUs to itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from turncredit.agents.fleet import PATIENCE_S, Fleet, NoRoom
from turncredit.agents.vllm_process import LocalServer, answers
from turncredit.cluster.environments import connected, first_line
from turncredit.config import ClusterConfig
from turncredit.errors import UserError

CLOSE_S = 15.0
FREE_S = 10.0  # for GPUs that a run which has just ended still holds
TOKEN = "seen"  # a file that shows whether a node sees the folder


class Host:
    """On a node: a Ray actor that holds GPUs, which CUDA_VISIBLE_DEVICES names, and runs a server on them."""

    def __init__(self) -> None:
        self._server: LocalServer | None = None

    def look(self, folder: str, token: str) -> tuple[str, str, bool]:
        """The node's id and address, and whether it sees the folder."""
        import ray

        file = Path(folder) / TOKEN
        try:
            seen = file.read_text() == token
        except OSError:
            seen = False
        return str(ray.get_runtime_context().get_node_id()), str(ray.util.get_node_ip_address()), seen

    def start(self, folder: str, address: str, settings: dict[str, Any]) -> tuple[str, str]:
        """The server's URL once it is up, or why it is not."""
        try:
            self._server = LocalServer(Path(folder), host=address, **settings)
        except UserError as error:
            return "", str(error)
        return self._server.url, ""

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.close()


class PlacedServer:
    """A server that Ray finds a node for.

    Args:
        ray: connected to the cluster.
        settings: the cluster's.
        folder: the model's, which the node has to see.
        token: what stands in a file there.
        server: of the server's own settings; see `LocalServer`.
    """

    def __init__(self, ray: Any, settings: ClusterConfig, folder: Path, token: str, server: Mapping[str, Any]) -> None:
        self._ray, self._settings, self._folder, self._server = ray, settings, str(folder), dict(server)
        self._url = self._node = self._address = ""
        options: dict[str, Any] = {"num_gpus": settings.engine_gpus, "num_cpus": 0, "max_restarts": 0,
                                   "scheduling_strategy": "SPREAD"}
        if settings.runtime_env:
            options["runtime_env"] = dict(settings.runtime_env)
        self._actor = ray.remote(Host).options(**options).remote()
        self._look = self._actor.look.remote(self._folder, token)

    def wait_for_room(self) -> None:
        """Until Ray has put it on a node.

        Raises:
            NoRoom: no node has GPUs for it.
            UserError: the node does not see the folder.
        """
        try:
            self._node, self._address, seen = self._ray.get(self._look, timeout=self._settings.wait_s)
        except self._ray.exceptions.GetTimeoutError:
            raise NoRoom(f"cluster: no node had {self._settings.engine_gpus} GPUs free for an engine within "
                         f"cluster.wait_s = {self._settings.wait_s:g} s") from None
        except self._ray.exceptions.RayError as error:
            raise UserError(f"cluster: an engine could not be placed: {first_line(error)}") from None
        if not seen:
            raise UserError(f"{self._where} does not see {self._folder}, where an engine reads its weights: set runs "
                            "to a folder that every node shares")

    def wait_until_up(self) -> str:
        """Its URL, once it can sample.

        Raises:
            UserError: it does not come up.
        """
        start_s = float(self._server["start_s"])
        try:
            url, why = self._ray.get(self._actor.start.remote(self._folder, self._address, self._server),
                                     timeout=start_s + PATIENCE_S)
        except self._ray.exceptions.GetTimeoutError:
            raise UserError(f"{self._where} said nothing for {start_s + PATIENCE_S:g} s") from None
        except self._ray.exceptions.RayError as error:
            raise UserError(f"{self._where} is gone: {first_line(error)}") from None
        if why:
            raise UserError(f"{self._where}: {why}")
        self._url = str(url)
        return self._url

    @property
    def _where(self) -> str:
        return f"cluster.engines: node {self._node[:8]} at {self._address}"

    def health(self) -> bool | None:
        """Whether it can sample."""
        return answers(self._url)

    def close(self) -> None:
        """End it, and give its GPUs back."""
        if self._url:
            self._ray.wait([self._actor.close.remote()], timeout=CLOSE_S)
        self._ray.kill(self._actor)


def placed(settings: ClusterConfig, folder: Path, server: Mapping[str, Any],
           restarts: int) -> tuple[Fleet, Callable[[], None]]:
    """As many servers as `cluster.engines` says, on the nodes that have GPUs, and what ends them.

    Args:
        settings: the cluster's.
        folder: the model's; every node has to see it.
        server: see `LocalServer`.
        restarts: of each server.
    Raises:
        MissingExtra, UserError: the cluster cannot be had, has too few GPUs, or a server does not come up.
    """
    ray, ours = connected(settings)
    token = secrets.token_hex(8)
    (folder / TOKEN).write_text(token)
    options = ("--tensor-parallel-size", str(settings.engine_gpus)) if settings.engine_gpus > 1 else ()
    begin = partial(PlacedServer, ray, settings, folder.resolve(), token, {**server, "options": options})
    patience_s = settings.wait_s + float(server["start_s"]) + PATIENCE_S
    try:
        _refuse_too_many(ray, settings)
        fleet = Fleet(begin, settings.engines, restarts, patience_s)
    except BaseException:
        if ours:
            ray.shutdown()
        raise

    def close() -> None:
        fleet.close()
        if ours:
            ray.shutdown()

    return fleet, close


def _refuse_too_many(ray: Any, settings: ClusterConfig) -> None:
    each, until = settings.engine_gpus, time.monotonic() + FREE_S
    if not each:
        return
    there = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    asked = f"cluster.engines is {settings.engines} with cluster.engine_gpus {each}"
    if sum(gpus // each for gpus in there) < settings.engines:
        raise UserError(f"{asked}: the nodes have {', '.join(map(str, sorted(there, reverse=True)))} GPUs; set one of "
                        "them lower, or add nodes with `ray start --num-gpus`")
    while (free := ray.available_resources().get("GPU", 0)) < each * settings.engines:
        if time.monotonic() > until:
            raise UserError(f"{asked}: {free:g} GPUs of the cluster are free; set one of them lower, or end what holds "
                            "the others")
        time.sleep(0.5)
