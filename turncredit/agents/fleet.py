"""vLLM servers that were started for a run: watched, and replaced where one dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from turncredit.errors import EngineError, UserError

log = logging.getLogger(__name__)

WATCH_S = 2.0  # between looks at a server
SILENT_S = 120.0  # without an answer, after which a server that is there counts as hung
CLOSE_S = 30.0
PATIENCE_S = 60.0  # beyond the time that a server takes to come up, where another one is waited for


class NoRoom(UserError):
    """A server could not be begun for now: nothing is wrong with it, and there is no place for it."""


class Started(Protocol):
    """A server that was begun."""

    def wait_for_room(self) -> None:
        """Until it is where it will run.

        Raises:
            NoRoom: there is none yet.
        """

    def wait_until_up(self) -> str:
        """Its URL, once it can sample.

        Raises:
            UserError: it does not come up.
        """

    def health(self) -> bool | None:
        """Whether it can sample; None where it does not say."""

    def close(self) -> None:
        """End it; called from any thread."""


class Serves(Protocol):
    """What sends requests to the servers, by place."""

    def join(self, place: int, url: str) -> None:
        """There is another server in this place.

        Raises:
            EngineError: it does not take the present weights.
        """

    def lose(self, place: int, why: str) -> None:
        """The server in this place is gone."""


@dataclass(slots=True, eq=False)
class _Place:
    number: int
    url: str | None = None  # of a server that is up
    server: Started | None = None
    why: str = ""  # there is none
    over: bool = False  # and none will come
    no_room: bool = False  # for the one that is to come
    been_up: bool = False
    refused: str = ""  # the URL of a server that is there and is not wanted any more


class Fleet:
    """Servers by place, each with a thread that starts it, watches it, and starts another one where it dies.

    Args:
        begin: starts a server, without waiting for it.
        count: of servers.
        restarts: of each place, in a run; where there is no room for another one it is tried again and again.
        patience_s: the longest that anybody waits for another server.
    Raises:
        UserError: one does not come up at the start.
    """

    def __init__(self, begin: Callable[[], Started], count: int, restarts: int, patience_s: float) -> None:
        self._begin, self._restarts, self._patience_s = begin, restarts, patience_s
        self._places = [_Place(number) for number in range(count)]
        self._engine: Serves | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self.joined = 0  # servers that came up so far
        self._threads = [threading.Thread(target=self._keep, args=(place,), daemon=True, name=f"server-{place.number}")
                         for place in self._places]
        for thread in self._threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: all(p.been_up for p in self._places) or any(p.over for p in self._places))
        failed = next((place.why for place in self._places if place.over), None)
        if failed is not None:
            self.close()
            raise UserError(failed)

    @property
    def urls(self) -> list[str]:
        """Where the servers are, by place; "" where there is none now."""
        return [place.url or "" for place in self._places]

    @property
    def lost(self) -> int:
        """Servers that died so far."""
        return self.joined - sum(place.url is not None for place in self._places)

    def serve(self, engine: Serves, urls: list[str]) -> None:
        """Tell an engine, which knows of `urls`, of what changes from now on."""
        with self._changed:
            self._engine = engine
            now = [(place.number, place.url, place.why) for place in self._places]
        for (number, url, why), known in zip(now, urls, strict=True):
            if url is None:
                engine.lose(number, why)
            elif url != known:
                engine.join(number, url)

    def refuse(self, place: int, url: str) -> None:
        """Replace a server that is there and does not do what it should; one that has been replaced already is not."""
        self._places[place].refused = url

    def wait_for_another(self, joined: int) -> bool:
        """Whether more servers came up than `joined`; waits where none can sample and some are on their way.

        One that there is no room for is not.
        """
        until = time.monotonic() + self._patience_s
        if self.joined <= joined and any(self._can_sample(place) for place in self._places):
            return False
        with self._changed:
            self._changed.wait_for(lambda: self.joined > joined or self._none_comes(), until - time.monotonic())
            return self.joined > joined

    def reasons(self) -> str:
        """Why there is no server, by place."""
        return "; ".join(f"server {place.number}: {place.why}" for place in self._places if place.why)

    def _can_sample(self, place: _Place) -> bool:
        return place.url is not None and place.server is not None and place.server.health() is True

    def _none_comes(self) -> bool:
        return self._closed.is_set() or all(place.over or place.no_room for place in self._places)

    def close(self) -> None:
        """End all of them."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            starting = [place.server for place in self._places if place.url is None and place.server is not None]
        for server in starting:  # the others' threads see to them
            server.close()
        until = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _keep(self, place: _Place) -> None:
        """In a thread of its own, which lives as long as its servers: the kernel ends them with it."""
        left = self._restarts
        while True:
            why = self._one_life(place)
            if self._closed.is_set() or not place.been_up or (left == 0 and not place.no_room):
                break
            left -= not place.no_room
            log.warning("engine: server %d is gone (%s); another one is being started", place.number, why)
        with self._changed:
            place.over = True
            self._changed.notify_all()

    def _one_life(self, place: _Place) -> str:
        """Start a server, tell the engine, and watch it until it is gone; returns why."""
        server: Started | None = None
        no_room = False
        try:
            server = place.server = self._begin()
            if self._closed.is_set():  # whoever closes may not have seen it
                server.close()
            server.wait_for_room()
            place.no_room = False
            self._up(place, server.wait_until_up())
            why = self._watch(place, server)
        except (UserError, EngineError) as error:
            why, no_room = str(error), isinstance(error, NoRoom)
        except Exception as error:  # whatever starts servers may have errors of its own
            why = f"{type(error).__name__}: {error}"
        was_up = place.url is not None
        with self._changed:
            place.url, place.why, place.no_room = None, why, no_room
            self._changed.notify_all()
        if was_up and self._engine is not None and not self._closed.is_set():
            self._engine.lose(place.number, why)
        if server is not None:
            server.close()
        return why

    def _up(self, place: _Place, url: str) -> None:
        """A server answers: whoever sends requests is told, and it gets the present weights."""
        engine = self._engine
        if engine is not None:
            engine.join(place.number, url)
        with self._changed:
            place.url, place.why, place.been_up, place.no_room = url, "", True, False
            self.joined += 1
            missed = self._engine if engine is None else None
            self._changed.notify_all()
        log.info("engine: server %d serves at %s", place.number, url)
        if missed is not None:
            missed.join(place.number, url)

    def _watch(self, place: _Place, server: Started) -> str:
        heard, signs = time.monotonic(), 0
        while not self._closed.wait(WATCH_S):
            if place.refused == place.url:
                return "it did not take new weights"
            health = server.health()
            signs = signs + 1 if health is False else 0
            if signs == 2:  # a connection may be refused once where a machine is very busy
                return "it died"
            if health:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENT_S:
                return f"it gave no answer in {SILENT_S:g} s"
        return "closed"
