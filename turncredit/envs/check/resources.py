"""What an environment leaves behind, and what it costs."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from turncredit.envs.check.probe import Broken, Hangs, Subject
from turncredit.envs.check.rows import row

PATIENCE_S = 2.0  # for a process or thread that is on its way out


@row("closes", "close() must return, also when it is called twice and before the first reset()")
def closes(subject: Subject) -> str:
    """Unused, in the middle of an episode, and again."""
    began = time.perf_counter()
    for what in ("before reset()", "in an episode", "a second time"):
        env = subject.make()
        if what != "before reset()":
            subject.reset(env, 0)
        times = 2 if what == "a second time" else 1
        for _ in range(times):
            try:
                subject.within_deadline(f"close() {what}", env.close)
            except Hangs:
                subject.close_hangs = True
                raise
    return f"{(time.perf_counter() - began) * 1e3 / 4:.1f} ms"


@row("leaves nothing", "close() must end processes and threads, close files and sockets, and remove temporary files")
def leaves_nothing(subject: Subject) -> str:
    """Processes, threads, open files and sockets, temporary files: after three copies as before them."""
    if subject.close_hangs:
        raise Broken("close() does not return")
    with _own_temporary_folder() as folder:
        _use_and_close(subject)  # what is made once a process (a pool, a cache) is no leak
        before = _held(folder)
        for _ in range(3):
            _use_and_close(subject)
        deadline = time.monotonic() + PATIENCE_S
        while (left := _more(before, _held(folder))) and time.monotonic() < deadline:
            time.sleep(0.05)
    if left:
        raise Broken("; ".join(f"{count} {what} are left of 3 copies" for what, count in left.items()))
    return "no process, thread, file or socket"


@row("the process", "do not change the working folder or the process's environment variables")
def the_process(subject: Subject) -> str:
    """Other environments run in it."""
    env = subject.make()
    subject.play(env, 0, subject.informed(env))
    subject.close(env)
    if Path.cwd() != subject.folder:
        raise Broken(f"the working folder is {Path.cwd()} after an episode")
    before = subject.variables
    changed = sorted(name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name))
    if changed:
        raise Broken(f"environment variables are changed: {', '.join(changed[:5])}")
    return "as it was"


@row("prints nothing", "use logging: what is printed spoils progress displays and JSON output")
def prints_nothing(subject: Subject) -> str:
    """Neither on stdout nor on stderr."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        env = subject.make()
        subject.play(env, 0, subject.informed(env))
        subject.close(env)
    if out.getvalue().strip():
        raise Broken(f"it printed {out.getvalue().strip()[:80]!r}")
    return "nothing"


@row("time", "a step of more than a second holds up training: do slow work in make_task(), or once a process")
def step_time(subject: Subject) -> str:
    """The median step and reset."""
    env = subject.make()
    act = subject.informed(env)
    steps, resets = [], []
    for seed in range(min(subject.seeds, 6)):
        began = time.perf_counter()
        played = subject.reset(env, seed)
        resets.append(time.perf_counter() - began)
        while not played.over and len(played.actions) < 50:
            action = act(env, played)
            began = time.perf_counter()
            subject.step(env, played, action)
            steps.append(time.perf_counter() - began)
    subject.close(env)
    figures = f"reset {median(resets) * 1e3:.2f} ms, step {median(steps) * 1e3:.2f} ms"
    if median(steps) > 1.0:
        raise Broken(figures)
    return figures


@row("length", "shorten what the environment says: it fills the agent's context")
def length(subject: Subject) -> str:
    """Characters of an episode, a quarter of which is about its tokens in English."""
    env = subject.make()
    act = subject.informed(env)
    sizes = []
    for seed in range(min(subject.seeds, 6)):
        played = subject.play(env, seed, act)
        sizes.append(sum(len(str(text)) for text in (played.prompt, *played.actions, *played.observations)))
    subject.close(env)
    figures = f"about {median(sizes) / 4:,.0f} tokens an episode"
    if median(sizes) > 4 * 128_000:
        raise Broken(figures)
    return figures


def _use_and_close(subject: Subject) -> None:
    env = subject.make()
    subject.play(env, 0, subject.informed(env))
    subject.close(env)
    del env
    gc.collect()


def _held(folder: str) -> dict[str, int]:
    """What this process holds, by kind."""
    own = f"/proc/{os.getpid()}"
    links = []
    for name in os.listdir(f"{own}/fd"):  # noqa: PTH208  # a Path for each descriptor would open another
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"{own}/fd/{name}"))  # noqa: PTH115
    children = [int(child) for task in Path(own, "task").iterdir() for child in _children(task)]
    return {"processes": len(children), "threads": sum(t.name != "check" for t in threading.enumerate()),
            "open files and sockets": len([link for link in links if not link.startswith("anon_inode")]),
            "temporary files": sum(1 for _ in Path(folder).rglob("*"))}


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:  # the thread has ended
        return []


def _more(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {what: after[what] - count for what, count in before.items() if after[what] > count}


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[str]:
    """Temporary files are made where only the subject makes some."""
    earlier, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="turncredit-check-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = earlier
            os.environ.pop("TMPDIR", None)
            if variable is not None:
                os.environ["TMPDIR"] = variable
