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
    """Raised in a job whose result is no longer wanted."""


@dataclass
class Job:
    """One thing to compute.

    Attributes
    ----------
    work
        Computes the result, in a thread; takes the job.
    show
        Takes the result, in the event loop's thread.
    patience
        Seconds after which the job is dropped if something newer was asked.
    idle
        Seconds without a newer request before the job starts.
    shares
        Progress of each part, 0 to 1.
    note
        What the job is busy with, shown when that takes long.
    """

    work: Callable[[Job], Any]
    show: Callable[[Any], None]
    patience: float = 0.4
    idle: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    note: str = ""
    dropped: bool = False
    start: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since the start; negative before it."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Progress of the whole, 0 to 1."""
        return sum(self.shares.values()) / max(1, len(self.shares))

    def report(self, part: str, share: float) -> None:
        """Note the progress of a part.

        Raises
        ------
        Dropped
            The result is no longer wanted.
        """
        if self.dropped:
            raise Dropped
        self.shares[part] = share


class Debounce:
    """Runs the most recent request, which is a sequence of jobs.

    Parameters
    ----------
    status
        Called with a job now and then while it runs, and at its end with None.
    show_error
        Takes an exception that a job raised.
    """

    def __init__(self, status: Callable[[Job | None], None], show_error: Callable[[Exception], None]) -> None:
        self.status, self.show_error = status, show_error
        self.asked: tuple[Job, ...] = ()
        self.task: asyncio.Task[None] | None = None

    def ask(self, *jobs: Job, at_once: bool = False) -> None:
        """Run these jobs in order instead of everything asked before; without jobs, only cancel that.

        `at_once` computes and shows the first before this returns. So does a request without a running event loop, of
        which the other jobs are never run.
        """
        loop, self.asked = _loop(), ()
        if jobs and (at_once or loop is None):
            self._now(jobs[0])
            jobs = jobs[1:]
        if loop:
            self.asked = jobs
            if jobs and (self.task is None or self.task.done()):
                self.task = loop.create_task(self._serve())

    def _now(self, job: Job) -> None:
        """Compute a job and show its result."""
        job.start = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(job.work, job)
            try:
                while wait([future], timeout=POLL).not_done:
                    self.status(job)
            except KeyboardInterrupt:
                job.dropped = True
                raise
        self._finish(job, future)

    async def _serve(self) -> None:
        """Run requests until there is none."""
        while self.asked:
            await asyncio.sleep(DELAY)
            asked = self.asked
            for job in asked:
                job.start = time.monotonic() + job.idle
                while self.asked is asked and job.age < 0:
                    await asyncio.sleep(POLL)
                if self.asked is asked:
                    await self._run(job, asked)
            if self.asked is asked:
                self.asked = ()

    async def _run(self, job: Job, asked: tuple[Job, ...]) -> None:
        """Compute a job and show its result; drop it when that is due."""
        future = asyncio.get_running_loop().run_in_executor(None, job.work, job)
        while not future.done() and not job.dropped:
            await asyncio.wait([future], timeout=POLL)
            self.status(job)
            late = job.age > job.patience and not future.done()
            job.dropped = self.asked is not asked and (late or not self.asked)
        if job.dropped:
            future.add_done_callback(lambda dropped: dropped.cancelled() or dropped.exception())
        self._finish(job, future)

    def _finish(self, job: Job, future: asyncio.Future[Any] | Future[Any]) -> None:
        """Show the result of a job, or its error, unless it was dropped."""
        self.status(None)
        try:
            if not job.dropped:
                job.show(future.result())
        except Exception as error:  # in a callback it would vanish into a log
            self.show_error(error)


def _loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop, such as a notebook's kernel has."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
