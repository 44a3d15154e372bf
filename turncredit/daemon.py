"""Blocking calls that an event loop waits for, in threads that hold up nothing when they never return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], name: str = "environment") -> T:
    """Await a blocking call in a thread of its own: one that never returns holds up neither the loop nor the exit."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(put: Callable[[Any], None], value: Any) -> None:
        if not result.done():  # cancelled by a time-out
            put(value)

    def work() -> None:
        try:
            put, value = result.set_result, call()
        except BaseException as error:
            # sys.exit() in an environment must not end the run, and a future refuses StopIteration.
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            raised = error if plain else RuntimeError(f"{type(error).__name__}: {error}")
            put, value = result.set_exception, raised  # type: ignore[assignment]  # the two take different values
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, put, value)

    threading.Thread(target=work, daemon=True, name=name).start()
    return await result
