"""vLLM servers, started for the run or running already, whose weights are replaced while they run."""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from turncredit.agents.adapter_files import NAME, AdapterFiles
from turncredit.agents.chat import ChatFormat
from turncredit.agents.fleet import Fleet
from turncredit.agents.openai_engine import OpenAIEngine
from turncredit.agents.vllm_process import HEALTH_S
from turncredit.errors import EngineError, UserError

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
        sleep: whether they give their GPU's memory up while nobody samples; they then run with --enable-sleep-mode.
        dtype: "float32" or "bfloat16", in which whole weights are written: that of the servers, where it is known.
        settings: see `OpenAIEngine`.
    """

    def __init__(self, servers: Sequence[str], chat: ChatFormat, folder: Path, adapter: AdapterFiles | None = None,
                 fleet: Fleet | None = None, sleep: bool = False, dtype: str = "float32", **settings: Any) -> None:
        super().__init__(servers, chat, **settings)
        self.folder, self._adapter, self._fleet, self._dtype = folder, adapter, fleet, dtype
        self._order: tuple[str, dict[str, Any]] | None = None  # how a server gets the present weights
        self._loading = threading.Lock()
        # Whole weights are read from their file again by those that wake; an adapter's base is kept in memory.
        self._sleep_level = (2 if adapter is None else 1) if sleep else 0
        self._asleep = False
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
            failed = self._each(self._give, places)
            if failed and first:
                raise EngineError(f"{next(iter(failed.values()))}; each server has to see the files of {self.folder}")
            self._asleep = False
            self._gone -= set(places) - set(failed)
            self._fail(failed)
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
                self._give(url, wake=False)
            if self._asleep:
                self._lay_down(url)
            self._put(place, url)

    def rest(self) -> None:
        """Have the servers give their memory up, where they are to; the next request wakes them."""
        if not self._sleep_level:  # and nobody waits for a server that is being given weights
            return
        with self._loading:
            if not self._asleep:
                self._fail(self._each(self._lay_down, [i for i in range(len(self.servers)) if i not in self._gone]))
                self._asleep = True

    def _wake(self) -> None:
        if not self._sleep_level:
            return
        with self._loading:
            if self._asleep:
                self._fail(self._each(self._give, [i for i in range(len(self.servers)) if i not in self._gone]))
                self._asleep = False

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
    def lost(self) -> int:
        """Servers that were started for the run and died so far."""
        return 0 if self._fleet is None else self._fleet.lost

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

    def _each(self, call: Callable[[str], None], places: Sequence[int]) -> dict[int, EngineError]:
        """Call with the URLs of these places, all at once; what went wrong, by place."""

        def outcome(place: int) -> EngineError | None:
            try:
                call(self.servers[place])
            except EngineError as error:
                return error
            return None

        with ThreadPoolExecutor(max(1, len(places))) as threads:
            return {i: error for i, error in zip(places, threads.map(outcome, places)) if error is not None}

    def _fail(self, failed: Mapping[int, EngineError]) -> None:
        for place, error in failed.items():
            self.lose(place, str(error))
            if self._fleet is not None:
                self._fleet.refuse(place, self.servers[place])

    def _give(self, url: str, wake: bool = True) -> None:
        """Have a server read the present weights; one that sleeps gets its memory back, as much as each step needs."""
        asleep = wake and self._asleep
        if asleep:
            free_cached()
            _post(f"{_root(url)}/wake_up?tags=weights", None)
        if self._order is not None:
            _post(f"{_root(url)}{self._order[0]}", self._order[1])
        if asleep:
            _post(f"{_root(url)}/wake_up?tags=kv_cache", None)
        _post(f"{_root(url)}/reset_prefix_cache", None)

    def _lay_down(self, url: str) -> None:
        level = self._sleep_level if self._order is not None else 1  # there is no file yet to read weights from
        _post(f"{_root(url)}/sleep?level={level}", None)

    def _written(self, weights: Iterable[tuple[str, Any]]) -> tuple[str, dict[str, Any]]:
        """Write the weights; the path and the body of what has a server read them."""
        if self._adapter is None:
            self._write_whole(weights)
            return "/collective_rpc", {"method": "reload_weights",
                                       "kwargs": {"weights_path": str(self.folder.resolve())}}
        return "/v1/load_lora_adapter", {"lora_name": NAME, "lora_path": str(self._adapter.write(weights)),
                                         "load_inplace": True}

    def _write_whole(self, weights: Iterable[tuple[str, Any]]) -> None:
        import torch
        from safetensors.torch import save_file

        dtype = getattr(torch, self._dtype)
        new = self.folder / "new"  # renamed, for a server that may still have the old file open
        save_file({name: tensor.detach().to("cpu", dtype, copy=True).contiguous() for name, tensor in weights},
                  new, metadata={"format": "pt"})
        new.replace(self.folder / "model.safetensors")


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def refuse_sleepless(url: str) -> None:
    """Refuse a server that was started without sleep mode: it would keep its memory, and say that it sleeps.

    Raises:
        UserError: it was, or does not say.
    """
    try:
        with urllib.request.urlopen(f"{_root(url)}/server_info?config_format=json", timeout=HEALTH_S) as answer:
            told = answer.read().decode(errors="replace")
    except OSError as error:
        raise UserError(f"engine.sleep is true and {url} does not say whether it can sleep ({error}): start it with "
                        "VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode") from None
    if not re.search(r"""enable_sleep_mode["']?\s*[:=]\s*true""", told, re.IGNORECASE):
        raise UserError(f"engine.sleep is true and {url} runs without sleep mode: start it with --enable-sleep-mode, "
                        "or set engine.sleep to false")


def free_cached() -> None:
    """Give back what torch keeps of a GPU's memory for itself: an engine that wakes on it needs it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
