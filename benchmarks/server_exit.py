"""Starts and ends the server again and again, and counts the ways in which it ends.

A server must end with exit code 0 after SIGTERM, whenever that comes: while it loads, when it is ready, under load.
Each of these is tried in turn::

    python benchmarks/server_exit.py photos.resfit --times 50
"""

from __future__ import annotations

import argparse
import collections
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

MOMENTS = ("as it listens", "when it is ready", "under load", "while it loads")
COMMAND = [sys.executable, "-c", "from resfit.cli.main import run; run()", "serve", "--port", "0", "--json"]


def is_ready(url: str) -> bool:
    """Whether the server says that it is ready."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(url: str, stop: threading.Event) -> None:
    """Asks until it is told to stop, or nobody listens any more."""
    body = b"P6 1 1 255 abc"
    while not stop.is_set():
        request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "image/x-portable-pixmap"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        except urllib.error.HTTPError:
            continue
        except OSError:
            return


def once(source: Path, moment: str, drain: str) -> tuple[int, str, float]:
    """Starts a server and ends it at a moment.

    Returns:
        Exit code, the lines on stderr that are no log, and the seconds from SIGTERM to the end.
    """
    # a pipe that nobody reads fills up, and the server waits
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*COMMAND, str(source), "--drain", drain], stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        head = "".join(process.stdout.readline() for _ in range(3))
        url = json.loads(head)["url"]
        stop, threads = threading.Event(), []
        if moment == "while it loads":
            time.sleep(0.7)
        elif moment != "as it listens":
            while not is_ready(url):
                time.sleep(0.05)
        if moment == "under load":
            threads = [threading.Thread(target=ask, args=(url, stop)) for _ in range(8)]
            for thread in threads:
                thread.start()
            time.sleep(0.3)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
        seconds = time.monotonic() - begin
        stop.set()
        for thread in threads:
            thread.join()
        log.seek(0)
        rest = [line for line in log.read().splitlines() if not line.startswith(("{", "Serving "))]
    return process.returncode, " | ".join(rest[-2:]), seconds


def main() -> None:
    """Runs the loop and prints what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--drain", default="0")
    chosen = parser.parse_args()
    seen: collections.Counter[tuple[str, int, str]] = collections.Counter()
    longest = 0.0
    for turn in range(chosen.times):
        moment = MOMENTS[turn % len(MOMENTS)]
        code, text, seconds = once(chosen.source, moment, chosen.drain)
        seen[moment, code, text] += 1
        longest = max(longest, seconds)
        print(f"{turn + 1}/{chosen.times} {moment}: exit code {code} after {seconds:.1f} s {text}", flush=True)
    print(f"longest end: {longest:.1f} s")
    for (moment, code, text), count in sorted(seen.items()):
        print(f"{count:4} times  {moment}: exit code {code} {text}")
    if any(code for _, code, _ in seen):
        sys.exit(1)


if __name__ == "__main__":
    main()
