"""Which job may start: what it waits for is there, and nobody trains the same."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from recbole_kd.benchmark.plan import Job

WAITING, RUNNING, DONE, FAILED, SKIPPED = "waiting", "running", "done", "failed", "skipped"


class Schedule:
    """The jobs of a benchmark with their states; safe for several threads.

    Args:
        jobs: Jobs, in the order in which they should start.
        done: Those that are done already.
    """

    def __init__(self, jobs: Iterable[Job], done: Iterable[Job] = ()):
        self.states: dict[Job, str] = {job: WAITING for job in jobs}
        self.states.update({job: DONE for job in done})
        self._changed = threading.Condition()

    def take(self) -> Job | None:
        """The next job, marked as running; waits for one; ``None`` when there will be none."""
        with self._changed:
            while True:
                waiting = [job for job, state in self.states.items() if state == WAITING]
                if not waiting:
                    return None
                for job in waiting:
                    if self._may_start(job):
                        self.states[job] = RUNNING
                        return job
                self._changed.wait()

    def finish(self, job: Job, state: str) -> list[Job]:
        """Mark a job as ended.

        Args:
            job: The job.
            state: ``done`` or ``failed``.

        Returns:
            The jobs that can no longer run, marked as skipped.
        """
        with self._changed:
            self.states[job] = state
            lost = [] if state == DONE else [j for j in self.states if self._lost(j)]
            for other in lost:
                self.states[other] = SKIPPED
            self._changed.notify_all()
            return lost

    def stop(self) -> None:
        """Start nothing more."""
        with self._changed:
            for job, state in self.states.items():
                if state == WAITING:
                    self.states[job] = SKIPPED
            self._changed.notify_all()

    def _trainings(self, *states: str) -> set[str]:
        """What the jobs in some states train; of several that train the same, one is enough."""
        return {job.training for job, state in self.states.items() if state in states}

    def _may_start(self, job: Job) -> bool:
        if job.training in self._trainings(RUNNING):
            return False
        missing = set(job.after) - self._trainings(DONE)
        return not missing & self._trainings(WAITING, RUNNING, FAILED, SKIPPED)

    def _lost(self, job: Job) -> bool:
        """Whether what a waiting job needs has failed, and nobody else may still make it."""
        ended = self._trainings(FAILED, SKIPPED) - self._trainings(WAITING, RUNNING, DONE)
        return self.states[job] == WAITING and bool(ended & set(job.after))
