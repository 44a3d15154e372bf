"""Java processes that ScienceWorld's simulators share: a warm one is ten times as fast as one that has just begun."""

from __future__ import annotations

import os
import threading
from typing import Any

from turncredit.envs.adapters.packages import imported
from turncredit.seeds import seed_of

# Objects have one and the same hash, so that sets of them keep the order of their making: else it would be by memory
# addresses, another each time.
_OPTIONS = ["-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"]
_guard = threading.Lock()
_machines: list[_Machine] = []


class _Machine:
    """A Java process with the package's simulator. Its worlds do not disturb each other as long as calls take turns."""

    def __init__(self) -> None:
        java = imported("py4j.java_gateway", "scienceworld", "scienceworld")
        where = imported("scienceworld.constants", "scienceworld", "scienceworld")
        port, self.process = java.launch_gateway(classpath=where.JAR_PATH, die_on_exit=True, cwd=where.BASEPATH,
                                                 javaopts=_OPTIONS, return_proc=True)
        self.gateway = java.JavaGateway(gateway_parameters=java.GatewayParameters(auto_field=True, port=port),
                                        java_process=self.process)
        # The package draws from Scala's own generator, and never seeds it.
        self.generator = getattr(getattr(self.gateway.jvm.scala.util, "Random$"), "MODULE$")
        self.lock = threading.Lock()
        self.worlds = 0

    def end(self) -> None:
        self.gateway.shutdown()
        self.process.kill()
        self.process.wait(timeout=10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class World:
    """A simulator of the package's. There are as many Java processes as cores at most; the last world ends them.

    What is drawn in a call depends on what was loaded last and on how many calls there were since, and on nothing else.
    """

    def __init__(self) -> None:
        with _guard:
            idle = min(_machines, key=lambda machine: machine.worlds, default=None)
            if idle is None or (idle.worlds and len(_machines) < (os.cpu_count() or 1)):
                idle = _Machine()
                _machines.append(idle)
            idle.worlds += 1
            self._machine = idle
        with self._machine.lock:
            self._server: Any = self._machine.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        self._loaded: tuple[Any, ...] = ()
        self._calls = 0

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The result of a call of the simulator: a text, a number, or a list of them."""
        if name == "load":
            self._loaded, self._calls = arguments, 0
        self._calls += 1
        with self._machine.lock:
            self._machine.generator.setSeed(seed_of("scienceworld", *self._loaded, self._calls) % 2**31)
            result = getattr(self._server, name)(*arguments)
            return result if result is None or isinstance(result, str | int | float) else list(result)

    def close(self) -> None:
        """Give the world up."""
        if self._server is None:
            return
        with self._machine.lock:
            self._machine.gateway.detach(self._server)
            self._server = None
        with _guard:
            self._machine.worlds -= 1
            if not any(machine.worlds for machine in _machines):
                while _machines:
                    _machines.pop().end()
