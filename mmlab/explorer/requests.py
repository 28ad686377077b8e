"""Run only the most recent request, in a thread, without blocking the event loop.

What to show while a slider moves is a compromise: starting anew at each value would show nothing until the slider
stops, and computing every value would lag behind. So there is one `Job` at a time, and its result is shown even if
something newer was asked meanwhile, unless the job takes longer than `PATIENCE`: then it is dropped.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

PATIENCE = 0.4
"""Seconds after which a job is dropped if something newer was asked."""
POLL = 0.05
"""Seconds between two looks at a job's progress."""


class Dropped(Exception):  # noqa: N818 (nothing went wrong)
    """Raised in a job whose result is no longer wanted."""


@dataclass
class Job:
    """The progress of one computation: the share of each part, 0 to 1, and a note on what takes long."""

    shares: dict[str, float] = field(default_factory=dict)
    note: str = ""
    dropped: bool = False
    start: float = field(default_factory=time.perf_counter)

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

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


Show = Callable[[Any], None]
Work = Callable[[Job], Any]


class Requests:
    """Runs the most recent request.

    Parameters
    ----------
    show
        Takes a result, in the event loop's thread.
    status
        Called with the job now and then while it runs in a thread, and at its end with None.
    show_error
        Takes an exception that a request raised.
    """

    def __init__(self, show: Show, status: Show, show_error: Show) -> None:
        self.show, self.status, self.show_error = show, status, show_error
        self.asked: Work | None = None
        self.task: asyncio.Task[None] | None = None

    def ask(self, work: Work | None, *, at_once: bool = False) -> None:
        """Compute this, in a thread, instead of everything asked before; None only cancels that.

        `at_once` shows the result before this returns. So does a request without a running event loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            at_once = True
        self.asked = None if at_once else work
        if work and at_once:
            self._finish(partial(work, Job()))
        elif work and (self.task is None or self.task.done()):
            self.task = loop.create_task(self._serve())

    async def _serve(self) -> None:
        """Run requests until there is none."""
        while work := self.asked:
            job = Job()
            future = asyncio.get_running_loop().run_in_executor(None, work, job)
            while not future.done() and not job.dropped:
                await asyncio.wait([future], timeout=POLL)
                self.status(job)
                newer = self.asked is not work and not future.done()
                job.dropped = newer and (job.age > PATIENCE or self.asked is None)
            if self.asked is work:
                self.asked = None
            self.status(None)
            if job.dropped:
                future.add_done_callback(lambda dropped: dropped.cancelled() or dropped.exception())
            else:
                self._finish(future.result)

    def _finish(self, result: Callable[[], Any]) -> None:
        """Show a result, or the error that it raises."""
        try:
            self.show(result())
        except Exception as error:  # in a callback it would vanish into a log
            self.show_error(error)
