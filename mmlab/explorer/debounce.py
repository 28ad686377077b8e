"""The latest of what is asked, computed in threads, while the event loop goes on listening.

What is shown while a slider moves is a compromise: to begin anew with each of its values would show nothing until it
stops; to compute every value would lag behind. So there is one :class:`Job` at a time, and what it comes to is shown
even if there is something newer by then, unless it takes longer than its patience: then it is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Dropped", "Job", "Latest"]

DEBOUNCE = 0.03
"""Seconds from a question to its computation: several questions at once become one."""
LOOK = 0.05
"""Seconds between two looks at how far a job is."""


class Dropped(Exception):  # noqa: N818 (nothing went wrong)
    """Nobody waits for this job any more."""


@dataclass
class Job:
    """One thing to compute.

    Attributes
    ----------
    work
        Computes it, in a thread; gets the job.
    show
        Takes what it came to, in the event loop's thread.
    patience
        Seconds that it may have taken when something newer is asked, to be finished and shown nevertheless.
    idle
        Seconds in which nothing newer is asked before it begins.
    shares
        How far its parts are, 0 to 1.
    note
        What it is busy with, if that takes long.
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
        """Seconds since it was begun."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """How far it is."""
        return sum(self.shares.values()) / max(1, len(self.shares))

    def check(self) -> None:
        """Raise :class:`Dropped` when nobody waits for it any more."""
        if self.dropped:
            raise Dropped

    def reporter(self, part: str) -> Callable[[float], None]:
        """Takes how far a part is; :meth:`check` included."""
        self.shares[part] = 0.0

        def report(share: float) -> None:
            self.check()
            self.shares[part] = share

        return report


class Latest:
    """Computes what was asked last.

    Parameters
    ----------
    look
        Called with a job now and then while it is computed, to show how far it is, and at its end with None.
    refuse
        Takes an exception that a job came to.
    """

    def __init__(self, look: Callable[[Job | None], None], refuse: Callable[[Exception], None]) -> None:
        self.look, self.refuse = look, refuse
        self.asked: list[Job] = []
        self.task: asyncio.Task[None] | None = None

    def ask(self, *jobs: Job) -> None:
        """Compute these one after the other instead of all that was asked before; with none of them, nothing any more.

        Without a running event loop the first of them is computed and shown before this returns, the others never.
        """
        if _loop() is None and jobs:
            self.now(jobs[0])
        else:
            self.later(*jobs)

    def later(self, *jobs: Job) -> None:
        """As :meth:`ask`, but never before this returns: without a running event loop, not at all."""
        self.asked = list(jobs)
        loop = _loop()
        if loop and jobs and (self.task is None or self.task.done()):
            self.task = loop.create_task(self._serve())

    def now(self, job: Job) -> None:
        """Compute a job and show it before this returns, instead of all that was asked before."""
        self.asked = []
        job.started = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(job.work, job)
            try:
                while wait([future], timeout=LOOK).not_done:
                    self.look(job)
            except KeyboardInterrupt:
                job.dropped = True
                raise
        self._conclude(job, future)

    async def _serve(self) -> None:
        while self.asked:
            await asyncio.sleep(DEBOUNCE)
            if not self.asked or not await self._is_quiet(self.asked[0].idle):
                continue
            rest = self.asked = self.asked[:]
            job = rest.pop(0)
            job.started = time.monotonic()
            future = asyncio.get_running_loop().run_in_executor(None, job.work, job)
            while not future.done() and not job.dropped:
                await asyncio.wait([future], timeout=LOOK)
                self.look(job)
                outdated = self.asked is not rest
                job.dropped = outdated and (not self.asked or (not future.done() and job.age > job.patience))
            if job.dropped:
                future.add_done_callback(lambda dropped: dropped.cancelled() or dropped.exception())
            else:
                self._conclude(job, future)

    async def _is_quiet(self, seconds: float) -> bool:
        """Wait so long; False as soon as something else is asked."""
        asked, end = self.asked, time.monotonic() + seconds
        while self.asked is asked and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(LOOK, left))
        return self.asked is asked

    def _conclude(self, job: Job, future: asyncio.Future[Any] | Future[Any]) -> None:
        self.look(None)
        try:
            job.show(future.result())
        except Exception as error:  # in a callback it would vanish into a log
            self.refuse(error)


def _loop() -> asyncio.AbstractEventLoop | None:
    """The running event loop, such as a notebook's kernel has."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
