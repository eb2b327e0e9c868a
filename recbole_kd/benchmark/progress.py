"""What a benchmark shows while it runs: a table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from recbole_kd.benchmark.plan import Job
from recbole_kd.optional import library

SHOWN_FAILURES = 5


class Progress:
    """The state of all jobs, shown as it changes.

    Args:
        jobs: All jobs.
        done: Those that were done before.
        live: Whether a table is redrawn; by default where standard error is a terminal.
    """

    def __init__(self, jobs: Sequence[Job], done: Iterable[Job], live: bool | None = None):
        self.jobs, self.before = list(jobs), len(list(done))
        self.live = sys.stderr.isatty() if live is None else live
        self.running: dict[Job, tuple[float, str]] = {}
        self.failures: dict[Job, str] = {}
        self.finished: dict[Job, float] = {}
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._screen: Any = None

    def __enter__(self) -> Progress:
        left = len(self.jobs) - self.before
        self._say(f"{len(self.jobs)} runs, {self.before} done before, {left} to do")
        if self.live:
            library("rich.live", "the live table")
            from rich.console import Console
            from rich.live import Live

            self._screen = Live(
                self.table(), console=Console(stderr=True), auto_refresh=False, transient=True
            )
            self._screen.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._screen is not None:
            self._screen.stop()
            self._screen = None

    @property
    def ended_well(self) -> bool:
        """Whether all runs are done."""
        return self.before + len(self.finished) == len(self.jobs)

    def started(self, job: Job) -> None:
        """A job's process starts."""
        with self._lock:
            self.running[job] = (time.monotonic(), "")
        self._say(f"start  {job.name}")

    def said(self, job: Job, text: str) -> None:
        """A job's process wrote a line."""
        with self._lock:
            begun, _ = self.running.get(job, (time.monotonic(), ""))
            self.running[job] = (begun, text)

    def ended(self, job: Job, error: str) -> None:
        """A job ended, well where the error is empty."""
        with self._lock:
            begun, _ = self.running.pop(job, (time.monotonic(), ""))
            seconds = time.monotonic() - begun
            if error:
                self.failures[job] = error
            else:
                self.finished[job] = seconds
            number = self.before + len(self.finished) + len(self.failures)
        state = f"FAILED {job.name}: {error}" if error else f"done   {job.name} ({seconds:.0f} s)"
        self._say(f"{number}/{len(self.jobs)} {state}")

    def refresh(self) -> None:
        """Draw the table anew."""
        if self._screen is not None:
            self._screen.update(self.table(), refresh=True)

    def table(self) -> Any:
        """The running jobs with the last line of each, and the count of the others."""
        from rich.markup import escape
        from rich.table import Table

        with self._lock:
            running, failures = dict(self.running), dict(self.failures)
            done = self.before + len(self.finished)
        minutes = (time.monotonic() - self.began) / 60
        title = f"{done} of {len(self.jobs)} done, {len(failures)} failed, {minutes:.0f} min"
        table = Table(title=title, expand=True)
        for name, options in {
            "run": {"no_wrap": True},
            "min": {"justify": "right"},
            "last line": {"no_wrap": True, "ratio": 1, "overflow": "ellipsis"},
        }.items():
            table.add_column(name, **options)  # type: ignore[arg-type]
        for job, (begun, text) in running.items():
            spent = f"{(time.monotonic() - begun) / 60:.1f}"
            table.add_row(escape(job.name), spent, escape(text))
        for job, error in list(failures.items())[-SHOWN_FAILURES:]:
            table.add_row(escape(job.name), "failed", escape(error), style="red")
        return table

    def conclude(self) -> None:
        """Say what failed, all of it once more at the end."""
        for job, error in self.failures.items():
            self._say(f"FAILED {job.name}: {error}")
        minutes = (time.monotonic() - self.began) / 60
        done = self.before + len(self.finished)
        self._say(
            f"{done} of {len(self.jobs)} runs done, {len(self.failures)} failed, {minutes:.1f} min"
        )

    def _say(self, text: str) -> None:
        if self._screen is not None:
            self._screen.console.print(text, markup=False, highlight=False)
        else:
            logging.getLogger(__name__).info("%s", text)
