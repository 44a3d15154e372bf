"""How long a report takes to open in Chromium, from the file on disk: until its episodes are there, and its charts.

    python benchmarks/report_opens.py runs/quickstart --rounds 5

Needs the extra `test-browser` and a Chromium. Each round is a browser of its own, so that nothing is cached. With it
stands how long the same browser takes for an empty page: the floor. On a busy machine the CPU time says more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from turncredit.report import open_recorded_run, write_report


def opened(tools, chromium: str, file: Path, ready: str) -> tuple[float, float]:
    """Seconds from asking for the page until a selector matches: on the clock, and of the page's thread's CPU time."""
    browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.perf_counter()
    page.goto(file.as_uri(), wait_until="commit")
    page.wait_for_selector(ready, state="attached")
    taken = time.perf_counter() - began
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    browser.close()
    return taken, found["TaskDuration"]


def main() -> None:
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--episodes", type=int, default=5_000)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    chromium = next(found for name in ("chromium", "chromium-browser", "google-chrome")
                    if (found := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        began = time.perf_counter()
        report = write_report([open_recorded_run(given.run)], Path(folder) / "report.html", given.episodes)
        print(f"written in {time.perf_counter() - began:.1f} s, {report.stat().st_size / 1e6:.1f} MB")
        empty = Path(folder) / "empty.html"
        empty.write_text("<body data-ready=all></body>")
        for name, file, ready in (("an empty page", empty, "body[data-ready]"),
                                  ("episodes and filters", report, "body[data-ready]"),
                                  ("with the charts in sight", report, ".js-plotly-plot .scatterlayer .trace")):
            times, busy = zip(*(opened(tools, chromium, file, ready) for _ in range(given.rounds)))
            print(f"{name}: median {statistics.median(times):.2f} s, worst {max(times):.2f} s of {given.rounds}; "
                  f"CPU time of the page's thread {statistics.median(busy):.2f} s")
    print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
