"""vLLM servers, started for the run or running already, whose weights are replaced while they run."""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from turncredit.agents.adapter_files import NAME, AdapterFiles
from turncredit.agents.chat import ChatFormat
from turncredit.agents.fleet import Fleet
from turncredit.agents.openai_engine import OpenAIEngine
from turncredit.errors import EngineError

RELOAD_S = 600.0
log = logging.getLogger(__name__)


class VllmServers(OpenAIEngine):
    """vLLM servers that read new weights from a folder when they are told to; they and we must see the same files.

    They have to run with VLLM_SERVER_DEV_MODE=1, which opens the paths for it to everybody who reaches the port.

    Args:
        servers: base URLs, such as "http://localhost:8000/v1".
        chat: the model's chat format.
        folder: where weights are written for them.
        adapter: where a LoRA adapter is written that `load` takes in place of whole weights; None for none. The servers
            then run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
        fleet: what started the servers and replaces those that die; None where others did.
        settings: see `OpenAIEngine`.
    """

    def __init__(self, servers: Sequence[str], chat: ChatFormat, folder: Path, adapter: AdapterFiles | None = None,
                 fleet: Fleet | None = None, **settings: Any) -> None:
        super().__init__(servers, chat, **settings)
        self.folder, self._adapter, self._fleet = folder, adapter, fleet
        self._order: tuple[str, dict[str, Any]] | None = None  # how a server gets the present weights
        self._loading = threading.Lock()
        if fleet is not None:
            fleet.serve(self, list(servers))

    def load(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Write the weights, and have each server read them and drop what it has read with others.

        A server that does not is asked for nothing any more: one of a fleet is replaced, and others may take the next
        weights. At the first weights of all it is an error.

        Raises:
            EngineError: no server takes them, or not in time.
        """
        joined = self._joined()
        with self._loading:
            first = self._order is None
            self._order = self._written(weights)
            places = [i for i in range(len(self.servers)) if self._fleet is None or i not in self._gone]
            with ThreadPoolExecutor(max(1, len(places))) as threads:
                failed = {i: error for i, error in zip(places, threads.map(self._given, places)) if error is not None}
            if failed and first:
                raise next(iter(failed.values()))
            self._gone -= set(places) - set(failed)
            for i, error in failed.items():
                self.lose(i, str(error))
                if self._fleet is not None:
                    self._fleet.refuse(i)
            if self._adapter is not None:
                self.model = NAME  # requests name what they are sampled with
        if len(failed) == len(places) and not self._another(joined):
            raise EngineError(f"no server is left: {'; '.join(map(str, failed.values())) or self._why_none()}")

    def join(self, place: int, url: str) -> None:
        """Another server in a place, from now on, once it has the present weights.

        Raises:
            EngineError: it does not take them.
        """
        with self._loading:
            if self._order is not None:
                self._give(url)
            self._put(place, url)

    def lose(self, place: int, why: str) -> None:
        """Ask the server in a place for nothing any more."""
        self._gone.add(place)
        log.warning("engine: %s is left out: %s", self.servers[place], why)

    def follow(self, servers: Sequence[str], gone: set[int]) -> None:
        """Take over what another process's engine knows of the servers."""
        for place, url in enumerate(servers):
            if url != self.servers[place]:
                self._put(place, url)
        self._gone = set(gone)

    @property
    def gone(self) -> set[int]:
        """Places without a server that could be asked."""
        return set(self._gone)

    def _joined(self) -> int:
        return 0 if self._fleet is None else self._fleet.joined

    def _another(self, joined: int) -> bool:
        return self._fleet is not None and self._fleet.wait_for_another(joined)

    def _why_none(self) -> str:
        return "" if self._fleet is None else self._fleet.reasons()

    def _given(self, place: int) -> EngineError | None:
        try:
            self._give(self.servers[place])
        except EngineError as error:
            return error
        return None

    def _give(self, url: str) -> None:
        """Have a server read the present weights."""
        assert self._order is not None
        root = url.rstrip("/").removesuffix("/v1")
        _post(f"{root}{self._order[0]}", self._order[1])
        _post(f"{root}/reset_prefix_cache", None)

    def _written(self, weights: Iterable[tuple[str, Any]]) -> tuple[str, dict[str, Any]]:
        """Write the weights; the path and the body of what has a server read them."""
        if self._adapter is None:
            self._write_whole(weights)
            return "/collective_rpc", {"method": "reload_weights",
                                       "kwargs": {"weights_path": str(self.folder.resolve())}}
        return "/v1/load_lora_adapter", {"lora_name": NAME, "lora_path": str(self._adapter.write(weights)),
                                         "load_inplace": True}

    def _write_whole(self, weights: Iterable[tuple[str, Any]]) -> None:
        from safetensors.torch import save_file

        # In float32 whatever the server computes in: it casts as it reads.
        new = self.folder / "new"  # renamed, for a server that may still have the old file open
        save_file({name: tensor.detach().to("cpu", copy=True).float().contiguous() for name, tensor in weights},
                  new, metadata={"format": "pt"})
        new.replace(self.folder / "model.safetensors")


def _post(url: str, body: Any) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=RELOAD_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        lora = ", VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora" if "lora" in url else ""
        hint = f"; start it with VLLM_SERVER_DEV_MODE=1{lora}" if error.code == 404 else ""
        raise EngineError(f"{url}: {error.code} {error.read()[:200].decode(errors='replace')}{hint}") from None
    except OSError as error:
        raise EngineError(f"{url}: {error}") from None
