"""vLLM as a server, started here or running already, whose weights are replaced while it runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from turncredit.agents.adapter_files import NAME, AdapterFiles
from turncredit.agents.chat import ChatFormat
from turncredit.agents.openai_engine import OpenAIEngine
from turncredit.errors import EngineError, UserError

START_S = 600.0  # the longest that a server may take to load a model
RELOAD_S = 600.0
LOG_TAIL = 600  # characters of a dead server's log that are shown
_PR_SET_PDEATHSIG = 1


class VllmServers(OpenAIEngine):
    """vLLM servers that read new weights from a folder when they are told to; they and we must see the same files.

    They have to run with VLLM_SERVER_DEV_MODE=1, which opens the paths for it to everybody who reaches the port.

    Args:
        servers: base URLs, such as "http://localhost:8000/v1".
        chat: the model's chat format.
        folder: where weights are written for them.
        adapter: where a LoRA adapter is written that `load` takes in place of whole weights; None for none. The servers
            then run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
        settings: see `OpenAIEngine`.
    """

    def __init__(self, servers: Sequence[str], chat: ChatFormat, folder: Path, adapter: AdapterFiles | None = None,
                 **settings: Any) -> None:
        super().__init__(servers, chat, **settings)
        self.folder, self._adapter = folder, adapter

    def load(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Write the weights, and have each server read them and drop what it has read with others.

        Raises:
            EngineError: a server does not, or not in time.
        """
        order: dict[str, Any]
        if self._adapter is None:
            self._write_whole(weights)
            path = "/collective_rpc"
            order = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder.resolve())}}
        else:
            path = "/v1/load_lora_adapter"
            order = {"lora_name": NAME, "lora_path": str(self._adapter.write(weights)), "load_inplace": True}
        for url in self.servers:
            root = url.rstrip("/").removesuffix("/v1")
            _post(f"{root}{path}", order)
            _post(f"{root}/reset_prefix_cache", None)
        if self._adapter is not None:
            self.model = NAME  # requests name what they are sampled with

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


class LocalServer:
    """A `vllm` server on this machine; it ends with us, however we end.

    Args:
        folder: a model as transformers saves it, its output head not tied to the embeddings.
        python: an interpreter that has vllm; by default this one.
        max_context: in tokens.
        max_batch: sequences side by side.
        dtype: "float32", "bfloat16" or "auto".
        cache_gb: memory for keys and values on a CPU.
        memory_share: of a GPU's memory.
        adapter_rank: of LoRA adapters that it makes room for; None for none.
        options: more of the server's command line.
    Raises:
        UserError: it does not come up; the sentence has the end of its log.
    """

    def __init__(self, folder: Path, python: str | None = None, max_context: int | None = None, max_batch: int = 64,
                 dtype: str = "float32", cache_gb: int = 1, memory_share: float = 0.4,
                 adapter_rank: int | None = None, options: Sequence[str] = ()) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log", prefix="vllm-", delete=False)  # noqa: SIM115
        command = [python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
                   "--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(self.port), "--dtype", dtype,
                   "--max-num-seqs", str(max_batch), "--enable-prefix-caching", "--generation-config", "vllm",
                   "--gpu-memory-utilization", str(memory_share)]
        command += ["--max-model-len", str(max_context)] if max_context else []
        command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(adapter_rank)] if adapter_rank else []
        command += options
        if not _has_gpu():  # compiling takes minutes there, and version 0.32 dies of seeds in prompts read in parts
            command += ["--enforce-eager", "--no-enable-chunked-prefill"]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
                       "VLLM_CPU_KVCACHE_SPACE": str(cache_gb),
                       "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1"}
        try:
            self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=subprocess.STDOUT,
                                             start_new_session=True, preexec_fn=_die_with(os.getpid()))
        except OSError as error:
            raise UserError(f"engine.python is {python!r}: {error}") from None
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        bound = time.monotonic() + START_S
        while time.monotonic() < bound:
            if self._process.poll() is not None:
                raise UserError(f"engine: the vLLM server ended while it started: ...{self._last_words()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health",
                                                                      timeout=5):
                return
            time.sleep(0.2)
        raise UserError(f"engine: the vLLM server did not come up in {START_S:g} s: ...{self._last_words()}")

    def _last_words(self) -> str:
        """The end of its log, and of it."""
        log = " ".join(Path(self._log.name).read_text(errors="replace").split())[-LOG_TAIL:]
        self.close()
        return log

    @property
    def pid(self) -> int:
        """Its process, which leads a group of its own."""
        return self._process.pid

    def close(self) -> None:
        """End it and what it has started."""
        for sign, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            try:
                self._process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own children
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)


def _die_with(parent: int) -> Callable[[], None]:
    """For a child before it becomes another program: the kernel ends it with us."""
    prctl = ctypes.CDLL(None).prctl

    def before() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None
