"""Run only the most recent request, in a thread, without blocking the event loop.

What to show while a slider moves is a compromise: starting anew at each value would show nothing until the slider
stops, and computing every value would lag behind. So there is one `Job` at a time, and its result is shown even if
something newer was asked meanwhile, unless the job takes longer than its patience: then it is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Debounce", "Dropped", "Job"]

DELAY = 0.03
"""Seconds from a request to its computation, so that several requests at once become one."""
POLL = 0.05
"""Seconds between two looks at a job's progress."""


class Dropped(Exception):  # noqa: N818 (nothing went wrong)
    """Raised in a job that nobody waits for any more."""


@dataclass
class Job:
    """One thing to compute.

    Attributes
    ----------
    work
        Computes it, in a thread; takes the job.
    show
        Takes the result, in the event loop's thread.
    patience
        Seconds after which the job is dropped if something newer was asked.
    idle
        Seconds without a newer request before the job starts.
    shares
        Progress of each part, 0 to 1.
    note
        What it is busy with, shown when that takes long.
    """

    work: Callable[[Job], Any]
    show: Callable[[Any], None]
    patience: float = 0.4
    idle: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    note: str = ""
    dropped: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Progress of the whole, 0 to 1."""
        return sum(self.shares.values()) / max(1, len(self.shares))

    def check(self) -> None:
        """Raise `Dropped` when nobody waits for the job any more."""
        if self.dropped:
            raise Dropped

    def reporter(self, part: str) -> Callable[[float], None]:
        """Return a function that takes the progress of a part, and drops the job where that is due."""
        self.shares[part] = 0.0

        def report(share: float) -> None:
            self.check()
            self.shares[part] = share

        return report


class Debounce:
    """Runs the most recent request.

    Parameters
    ----------
    status
        Called with a job now and then while it runs, and at its end with None.
    show_error
        Takes an exception that a job raised.
    """

    def __init__(self, status: Callable[[Job | None], None], show_error: Callable[[Exception], None]) -> None:
        self.status, self.show_error = status, show_error
        self.asked: list[Job] = []
        self.task: asyncio.Task[None] | None = None

    def ask(self, *jobs: Job) -> None:
        """Run these jobs in order instead of everything asked before; without jobs, only cancel that.

        Without a running event loop the first job is computed and shown before this returns, the others never.
        """
        if _loop() is None and jobs:
            self.now(jobs[0])
        else:
            self.later(*jobs)

    def later(self, *jobs: Job) -> None:
        """Run these jobs as `ask` does, but never before this returns; without a running event loop, not at all."""
        self.asked = list(jobs)
        loop = _loop()
        if loop and jobs and (self.task is None or self.task.done()):
            self.task = loop.create_task(self._serve())

    def now(self, job: Job) -> None:
        """Compute a job and show its result before this returns, instead of everything asked before."""
        self.asked = []
        job.started = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(job.work, job)
            try:
                while wait([future], timeout=POLL).not_done:
                    self.status(job)
            except KeyboardInterrupt:
                job.dropped = True
                raise
        self._conclude(job, future)

    async def _serve(self) -> None:
        while self.asked:
            await asyncio.sleep(DELAY)
            if not self.asked or not await self._is_quiet(self.asked[0].idle):
                continue
            rest = self.asked = self.asked[:]
            job = rest.pop(0)
            job.started = time.monotonic()
            future = asyncio.get_running_loop().run_in_executor(None, job.work, job)
            while not future.done() and not job.dropped:
                await asyncio.wait([future], timeout=POLL)
                self.status(job)
                outdated = self.asked is not rest
                job.dropped = outdated and (not self.asked or (not future.done() and job.age > job.patience))
            if job.dropped:
                future.add_done_callback(lambda dropped: dropped.cancelled() or dropped.exception())
            else:
                self._conclude(job, future)

    async def _is_quiet(self, seconds: float) -> bool:
        """Wait for this time; return False as soon as something else is asked."""
        asked, end = self.asked, time.monotonic() + seconds
        while self.asked is asked and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(POLL, left))
        return self.asked is asked

    def _conclude(self, job: Job, future: asyncio.Future[Any] | Future[Any]) -> None:
        self.status(None)
        try:
            job.show(future.result())
        except Exception as error:  # in a callback it would vanish into a log
            self.show_error(error)


def _loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop, such as a notebook's kernel has."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
