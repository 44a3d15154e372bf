"""A vLLM server as a process of ours: started, watched, ended with us."""

from __future__ import annotations

import contextlib
import ctypes
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
from collections.abc import Callable, Sequence
from pathlib import Path

from turncredit.errors import UserError

START_S = 600.0  # the longest that a server may take to load a model
HEALTH_S = 5.0
LOG_TAIL = 600  # characters of a dead server's log that are shown
NO_SLEEP = "Sleep mode is not supported"  # what vLLM says of a platform
_PR_SET_PDEATHSIG = 1


class LocalServer:
    """A `vllm` server on this machine; it ends with the thread that started it, and so with us, however we end.

    Args:
        folder: a model as transformers saves it, its output head not tied to the embeddings.
        python: an interpreter that has vllm; by default this one.
        max_context: in tokens.
        max_batch: sequences side by side.
        dtype: "float32", "bfloat16" or "auto".
        cache_gb: memory for keys and values on a CPU.
        memory_share: of a GPU's memory.
        adapter_rank: of LoRA adapters that it makes room for; None for none.
        sleep: whether it can give its memory up and take it back.
        options: more of the server's command line.
        host: the address that it listens on.
        start_s: the longest that it may take to come up.
        wait: whether to return once it is up; else call `wait_until_up`.
    Raises:
        UserError: it does not come up; the sentence has the end of its log.
    """

    def __init__(self, folder: Path, python: str | None = None, max_context: int | None = None, max_batch: int = 64,
                 dtype: str = "float32", cache_gb: int = 1, memory_share: float = 0.4,
                 adapter_rank: int | None = None, sleep: bool = False, options: Sequence[str] = (),
                 host: str = "127.0.0.1", start_s: float = START_S, wait: bool = True) -> None:
        self.port, self._start_s, self._closed = _free_port(host), start_s, False
        self.url = f"http://{host}:{self.port}/v1"
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log", prefix="vllm-", delete=False)  # noqa: SIM115
        command = [python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
                   "--served-model-name", "policy", "--host", host, "--port", str(self.port), "--dtype", dtype,
                   "--max-num-seqs", str(max_batch), "--enable-prefix-caching", "--generation-config", "vllm",
                   "--gpu-memory-utilization", str(memory_share)]
        command += ["--max-model-len", str(max_context)] if max_context else []
        command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(adapter_rank)] if adapter_rank else []
        command += ["--enable-sleep-mode"] if sleep else []
        command += options
        if not _has_gpu():  # compiling takes minutes there, and version 0.32 dies of seeds in prompts read in parts
            command += ["--enforce-eager", "--no-enable-chunked-prefill"]
        command = [sys.executable, str(Path(__file__).with_name("process_group.py")), *command]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
                       "VLLM_CPU_KVCACHE_SPACE": str(cache_gb),
                       "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1"}
        if shutil.which(python or sys.executable) is None:
            raise UserError(f"engine.python is {python!r}: there is no such program")
        try:
            self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=subprocess.STDOUT,
                                             start_new_session=True, preexec_fn=_die_with(os.getpid()))
        except OSError as error:
            raise UserError(f"engine.python is {python!r}: {error}") from None
        if wait:
            self.wait_until_up()

    def wait_for_room(self) -> None:
        """It is where it runs already."""

    def wait_until_up(self) -> str:
        """Its URL, once it answers.

        Raises:
            UserError: it ended, or does not come up in time.
        """
        bound = time.monotonic() + self._start_s
        while time.monotonic() < bound:
            if self._process.poll() is not None:
                words = self._last_words()
                if NO_SLEEP in words:
                    raise UserError("engine.sleep is true: vLLM has no sleep mode on this platform, which has to be a "
                                    "GPU; set it to false")
                raise UserError(f"engine: the vLLM server ended while it started: ...{words[-LOG_TAIL:]}")
            if answers(self.url):
                return self.url
            time.sleep(0.2)
        raise UserError(f"engine: the vLLM server did not come up in engine.start_timeout_s = {self._start_s:g} s: "
                        f"...{self._last_words()[-LOG_TAIL:]}")

    def _last_words(self) -> str:
        """Its log, and its end."""
        log = ""
        with contextlib.suppress(FileNotFoundError):  # closed by another thread
            log = " ".join(Path(self._log.name).read_text(errors="replace").split())
        self.close()
        return log

    @property
    def pid(self) -> int:
        """Its process, which leads a group of its own."""
        return self._process.pid

    def health(self) -> bool | None:
        """Whether it can sample; None where it gives no answer, though it is there."""
        return False if self._process.poll() is not None else answers(self.url)

    def close(self) -> None:
        """End it and what it has started."""
        if self._closed:
            return
        self._closed = True
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


def answers(url: str) -> bool | None:
    """Whether a vLLM server says that it can sample; None where it says nothing, though something is there."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/').removesuffix('/v1')}/health", timeout=HEALTH_S):
            return True
    except urllib.error.HTTPError:
        return False  # it is there, and what samples behind it is not
    except OSError as error:
        reason = getattr(error, "reason", error)
        return None if isinstance(reason, TimeoutError) else False


def _die_with(parent: int) -> Callable[[], None]:
    """For a child before it becomes another program: the kernel ends it with the thread that started it."""
    prctl = ctypes.CDLL(None).prctl

    def before() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before


def _free_port(host: str) -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None
