"""A service that speaks E2B's protocol on this machine, for tests of the unmodified SDK.

What the SDK sees is real: sandboxes that are made, live for a time, and are killed; files that are written;
processes that run, take input and give output. What differs is what a sandbox is made of: a folder and the
processes started in it, instead of a virtual machine.

Requests without the header `E2b-Sandbox-Id` are for the control plane (authorised by X-API-KEY); those with
`E2b-Sandbox-Port: 49983` are for the daemon in the sandbox, whose process service speaks Connect with JSON:
https://connectrpc.com/docs/protocol.
"""

from __future__ import annotations

import base64
import contextlib
import email.parser
import email.policy
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

API_KEY = "e2b_" + "0" * 40
DAEMON_PORT = "49983"
ENVELOPE = struct.Struct(">BI")  # Connect's frame in a stream: flags, bytes
LAST = 2  # the flag of a stream's last envelope


@dataclass
class Machine:
    """One sandbox: a folder that is every user's home, and the processes started in it."""

    folder: Path
    template: str
    internet: bool
    ends: float  # on the monotonic clock
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def kill(self) -> None:
        for process in list(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Service(ThreadingHTTPServer):
    """The service; `settings` is what the SDK needs to know of it. Closing it kills every sandbox."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        url = f"http://127.0.0.1:{self.server_port}"
        self.settings = {"api_key": API_KEY, "api_url": url, "sandbox_url": url}
        self.machines: dict[str, Machine] = {}
        self.made: list[dict[str, Any]] = []  # the bodies of the requests for sandboxes
        self.path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where machines find programs
        self.silent = False  # what a sandbox's processes say no longer arrives, as when a network fails
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        threading.Thread(target=self._end_overdue, daemon=True).start()

    def make(self, body: dict[str, Any]) -> tuple[str, Machine]:
        name = "i" + secrets.token_hex(9)
        folder = Path(tempfile.mkdtemp(prefix="turncredit-e2b-"))
        (folder / ".profile").write_text(f"PATH={self.path}\n")  # the SDK runs commands in a login shell
        machine = Machine(folder, body["templateID"], body.get("allow_internet_access", True),
                          time.monotonic() + body.get("timeout", 15))
        with self._lock:
            self.made.append(body)
            self.machines[name] = machine
        return name, machine

    def kill(self, name: str) -> bool:
        with self._lock:
            machine = self.machines.pop(name, None)
        if machine:
            machine.kill()
        return machine is not None

    def _end_overdue(self) -> None:
        while True:
            for name, machine in list(self.machines.items()):
                if machine.ends < time.monotonic():
                    self.kill(name)
            time.sleep(0.05)

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        for name in list(self.machines):
            self.kill(name)


class Request(BaseHTTPRequestHandler):
    """One connection; its requests are handled one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Service

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing to the tests' stderr."""

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        if (name := self.headers.get("E2b-Sandbox-Id")) is None:
            self._control(path, body)
        elif (machine := self.server.machines.get(name)) is None:
            self._say(502, {"message": "The sandbox was not found", "code": 502, "sandboxId": name})
        elif self.headers.get("E2b-Sandbox-Port") != DAEMON_PORT:
            self._say(502, {"message": "The sandbox is running but port is not open", "code": 502})
        elif path != "/health" and self.headers.get("X-Access-Token") != machine.token:
            self._say(401, {"message": "unauthenticated", "code": 401})
        else:
            self._daemon(path, machine, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _say(self, status: int, answer: object | None = None, kind: str = "application/json") -> None:
        data = b"" if answer is None else answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _control(self, path: str, body: bytes) -> None:
        """Serve the control plane: make sandboxes, kill them, let them live longer."""
        if self.headers.get("X-API-KEY") != API_KEY:
            self._say(401, {"code": 401, "message": "Invalid API key"})
            return
        _, *parts = path.split("/")
        if self.command == "POST" and parts == ["v2", "sandboxes"]:
            name, machine = self.server.make(json.loads(body))
            self._say(201, {"templateID": machine.template, "sandboxID": name, "clientID": "local",
                            "envdVersion": "0.6.7", "envdAccessToken": machine.token})
        elif len(parts) < 2 or parts[0] != "sandboxes" or parts[1] not in self.server.machines:
            self._say(404, {"code": 404, "message": f"{path} was not found"})
        elif self.command == "DELETE":
            self.server.kill(parts[1])
            self._say(204)
        elif parts[2:] == ["timeout"]:
            self.server.machines[parts[1]].ends = time.monotonic() + json.loads(body)["timeout"]
            self._say(204)
        else:
            self._say(404, {"code": 404, "message": f"{path} was not found"})

    def _daemon(self, path: str, machine: Machine, body: bytes) -> None:
        """Serve the daemon in the sandbox: files and processes."""
        if path == "/health":
            self._say(204)
        elif path == "/files" and self.command == "POST":
            self._say(200, self._write(machine, body))
        elif path == "/files":
            target = machine.folder / parse_qs(urlsplit(self.path).query)["path"][0]
            self._say(200, target.read_bytes(), "application/octet-stream")
        elif path == "/process.Process/Start":
            self._start(machine, json.loads(body[ENVELOPE.size:]))
        elif path.startswith("/process.Process/"):
            self._process(path.rpartition("/")[2], machine, json.loads(body))
        else:
            self._say(404, {"code": "unimplemented", "message": path})

    def _write(self, machine: Machine, body: bytes) -> list[dict[str, str]]:
        wanted = parse_qs(urlsplit(self.path).query).get("path")
        kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(kind + body)
        written = []
        for part in form.iter_parts():
            target = machine.folder / (wanted[0] if wanted else part.get_filename())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(part.get_payload(decode=True))
            written.append({"name": target.name, "path": str(target), "type": "file"})
        return written

    def _process(self, call: str, machine: Machine, message: dict[str, Any]) -> None:
        process = machine.processes.get(message["process"]["pid"])
        if process is None or process.poll() is not None:
            self._say(404, {"code": "not_found", "message": "process not found"})
            return
        assert process.stdin is not None
        if call == "SendInput":
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(base64.b64decode(message["input"]["stdin"]))
                process.stdin.flush()
        elif call == "CloseStdin":
            process.stdin.close()
        elif call == "SendSignal":
            os.killpg(process.pid, getattr(signal, message["signal"].removeprefix("SIGNAL_")))
        self._say(200, {})

    def _start(self, machine: Machine, message: dict[str, Any]) -> None:
        """Run a process, and stream what it says until it ends."""
        wanted = message["process"]
        process = subprocess.Popen(
            [wanted["cmd"], *wanted.get("args", [])], cwd=wanted.get("cwd") or machine.folder,
            env={"HOME": str(machine.folder), **wanted.get("envs", {})},
            stdin=subprocess.PIPE if message.get("stdin") else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True)
        machine.processes[process.pid] = process
        self.send_response(200)
        self.send_header("Content-Type", "application/connect+json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        writing = threading.Lock()

        def envelope(event: dict[str, Any], flags: int = 0) -> None:
            data = json.dumps(event).encode()
            data = ENVELOPE.pack(flags, len(data)) + data
            with writing, contextlib.suppress(ConnectionError):
                if not self.server.silent:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        def forward(name: str, pipe: Any) -> None:
            while chunk := os.read(pipe.fileno(), 1 << 15):
                envelope({"event": {"data": {name: base64.b64encode(chunk).decode()}}})

        envelope({"event": {"start": {"pid": process.pid}}})
        pumps = [threading.Thread(target=forward, args=(name, pipe))
                 for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr))]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        machine.processes.pop(process.pid, None)
        envelope({"event": {"end": {"exitCode": code, "exited": code >= 0, "status": f"exit status {code}"}}})
        envelope({}, LAST)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(b"0\r\n\r\n")
