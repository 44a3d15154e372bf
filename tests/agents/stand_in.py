"""Stands where `python -m vllm.entrypoints.openai.api_server` would, on machines without vLLM: the paths that we use.

It draws nothing: a completion's tokens are 5, and their logprobs are minus the first value of the file of weights that
it was told to read. A file `fault` beside its model says what is wrong with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def given(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


MODEL = Path(given("--model"))
loaded = {"version": -1.0}


def fault() -> str:
    file = MODEL.parent / "fault"
    return file.read_text() if file.exists() else ""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        model = {"id": "policy", "object": "model", "created": 0, "owned_by": "us", "max_model_len": 200}
        self.answer(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
        if self.path == "/v1/completions":
            self.complete(body)
        elif self.path == "/collective_rpc" and fault() == f"refuses {os.getpid()}":
            self.answer(500, {"error": "no memory"})
        elif self.path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            loaded["version"] = float(load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")["w"][0])
            self.answer(200, {})
        else:
            self.answer(200, {})

    def complete(self, body: dict[str, Any]) -> None:
        if fault() == f"dies {os.getpid()}":
            os._exit(1)
        n = body["max_tokens"]
        logprobs = {"tokens": ["5"] * n, "token_logprobs": [-loaded["version"]] * n, "top_logprobs": None,
                    "text_offset": []}
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs, "token_ids": [5] * n,
                  "prompt_token_ids": body["prompt"]}
        self.answer(200, {"id": "c", "object": "text_completion", "created": 0, "model": "policy", "choices": [choice]})

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    if fault() == "does not start":
        sys.exit("there is no memory for it")
    if fault() == "has children":
        subprocess.Popen(["sleep", "600"])
    ThreadingHTTPServer((given("--host"), int(given("--port"))), Answer).serve_forever()
