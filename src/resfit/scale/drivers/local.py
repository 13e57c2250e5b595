"""Processes of this machine: a worker that dies is replaced, and costs its shard."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator
from typing import IO

from resfit.errors import ResfitError
from resfit.scale import planning
from resfit.scale.drivers.base import Job
from resfit.scale.unit import MOST_DEATHS, ShardResult, Unit

_COMMAND = "from resfit.scale.drivers import local; local.work()"
# threads of TensorFlow and of products of matrices
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Worker:
    """A process, the shard that it does, and the one that it decodes ahead."""

    def __init__(self, job: Job):
        environment = {**os.environ, **dict.fromkeys(_THREADS, str(job.threads))}
        command = [sys.executable, "-c", _COMMAND, job.plan.url, str(job.threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.shard: int | None = None
        self.then: int | None = None

    @property
    def answers(self) -> IO[bytes]:
        """Where it prints the result of a shard."""
        assert self.process.stdout is not None
        return self.process.stdout

    def give(self, shard: int, then: int | None) -> None:
        """Tells it to do a shard."""
        self.shard, self.then = shard, then
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which its answers will show
            self.process.stdin.write(f"{shard} {'' if then is None else then}\n".encode())
            self.process.stdin.flush()

    def end(self) -> None:
        """Lets it end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def drive(job: Job) -> Iterator[ShardResult]:
    """Processes the pending shards of a job in processes of this machine.

    Args:
        job: The run.

    Raises:
        ResfitError: A worker could not write its result.
    """
    todo, deaths = deque(job.pending), Counter[int]()
    selector = selectors.DefaultSelector()
    workers: list[_Worker] = []

    def feed(worker: _Worker) -> None:
        """Gives a worker what it has decoded ahead, or the next; and the next to decode, where there is enough."""
        shard = worker.then if worker.then is not None else (todo.popleft() if todo else None)
        if shard is None:
            worker.shard = None
            worker.end()
            return
        worker.give(shard, todo.popleft() if len(todo) >= max(1, len(workers) - 1) else None)
        job.began(shard, f"worker process {worker.process.pid}")

    def hire() -> None:
        worker = _Worker(job)
        workers.append(worker)
        selector.register(worker.answers, selectors.EVENT_READ, worker)
        feed(worker)

    try:
        for _ in range(min(job.workers or 1, len(todo))):
            hire()
        while workers:
            for key, _ in selector.select():
                worker: _Worker = key.data
                if line := worker.answers.readline():
                    answer = json.loads(line)
                    if "error" in answer:  # of the machine, such as a full disk: every worker would meet it
                        raise ResfitError(f"shard {answer['shard']} could not be done: {answer['error']}")
                    yield job.ended(ShardResult(**answer))
                    feed(worker)
                    continue
                code = worker.process.wait()
                selector.unregister(worker.answers)
                workers.remove(worker)
                if worker.then is not None:
                    todo.appendleft(worker.then)
                if worker.shard is None:
                    continue
                ending = f"signal {-code}" if code < 0 else f"exit code {code}"
                deaths[worker.shard] += 1
                if deaths[worker.shard] > MOST_DEATHS:  # before it came to the shard at all
                    raise ResfitError(f"workers die as soon as they start ({ending}); the lines above may say why")
                job.say(f"a worker died ({ending}) while it processed shard {worker.shard}; the shard is retried")
                todo.appendleft(worker.shard)
                hire()
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def work() -> None:
    """Runs in the worker process: reads numbers of shards from standard input, prints a line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print
    unit = Unit(planning.load(sys.argv[1]), threads=int(sys.argv[2]))
    for line in sys.stdin:
        shard, *then = map(int, line.split())
        try:
            answer = vars(unit.run(shard, *then))
        except OSError as error:
            answer = {"shard": shard, "error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    unit.close()
