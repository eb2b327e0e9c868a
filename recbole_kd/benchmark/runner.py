"""Running a benchmark: its jobs in parallel processes, gone on with after any stop."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import yaml
from filelock import FileLock, Timeout

from recbole_kd import checkpoint, per_user
from recbole_kd.benchmark import plan, records, schedule
from recbole_kd.benchmark.check import Prints, check_jobs
from recbole_kd.benchmark.job import failed
from recbole_kd.benchmark.plan import Job
from recbole_kd.benchmark.progress import Progress
from recbole_kd.benchmark.spec import Spec
from recbole_kd.errors import KDError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""How numeric libraries are told their threads; several processes on all cores slow each other."""

KEPT_LINES = 20
"""Lines of a run's log that may say why it died."""


def run_benchmark(
    spec: Spec,
    out: Path,
    command: str = "",
    live: bool | None = None,
    part: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Run what is missing of a benchmark.

    Args:
        spec: The benchmark.
        out: Its folder.
        command: How it was called, for the report.
        live: Whether a table is redrawn; by default where a terminal shows it.
        part: Which runs alone are made, as :func:`recbole_kd.benchmark.plan.select` takes it.

    Returns:
        0, or 1 where a run failed; the others have been run all the same.

    Raises:
        KDError: Some run would be refused, before any is started; or another process runs this.
    """
    jobs = plan.jobs_of(spec, out)
    chosen = plan.select(jobs, **(part or {}))
    splits = check_jobs(chosen, spec.metric)
    checkpoint.need_space(out, 0)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise KDError(f"{out}: another process runs this benchmark; allowed is one") from None
    with lock:
        done = [job for job in chosen if finished(job, out, splits)]
        for job in set(chosen) - set(done):
            # A report must not take what was made with other options for this.
            job.file(out).unlink(missing_ok=True)
        _write_spec(spec, jobs, out, command)
        progress = Progress(chosen, done, live)
        with progress:
            Runner(chosen, done, out, progress).run(spec.jobs)
        progress.conclude()
    return 0 if progress.ended_well else 1


def _write_spec(spec: Spec, jobs: Sequence[Job], out: Path, command: str) -> None:
    metric = spec.metric or plan.metric_of(jobs[0])
    # A report of runs that were made in parts leaves out what the file no longer asks for.
    trainings = {job.name: job.training for job in jobs}
    values = {**spec.plain(), "metric": metric, "command": command, "trainings": trainings}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    checkpoint.write_text(out / records.SPEC_FILE, text)


def finished(job: Job, out: Path, splits: Prints) -> bool:
    """Whether a job has been done as it is asked for now, on the data as they are now.

    Args:
        job: The job.
        out: The benchmark's folder.
        splits: See :func:`recbole_kd.benchmark.check.check_jobs`.
    """
    file = job.file(out)
    if not file.is_file():
        return False
    try:
        record = records.read(file)
    except KDError:
        return False  # cut short by a full disk: it is made again
    there = record.folder is None or (out / record.folder / per_user.FILE).is_file()
    same = records.told(record.options) == records.told(job.options)
    said = record.provenance
    split, now = said.get("split"), splits[job.dataset, job.pair, job.row]
    if isinstance(split, dict):
        read = {**split, **({"times": said["times"]} if "times" in said else {})}
        if any(read[part] != now[part] for part in now if part in read):
            return False
    return record.status == records.DONE and there and same and record.training == job.training


class Runner:
    """The processes of a benchmark.

    Args:
        jobs: All jobs.
        done: Those that are done.
        out: The benchmark's folder.
        progress: Who is told.
    """

    def __init__(self, jobs: Sequence[Job], done: Sequence[Job], out: Path, progress: Progress):
        self.schedule = schedule.Schedule(jobs, done)
        self.out, self.progress = out, progress
        self.processes: set[subprocess.Popen[str]] = set()
        self.stopped: str | None = None
        self._lock = threading.Lock()

    def run(self, n: int) -> None:
        """Run all jobs that can be run.

        Args:
            n: Processes at a time.

        Raises:
            KeyboardInterrupt: The user stopped it; what ran goes on the next time.
        """
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(n)]
        before = {s: signal.signal(s, self._stop) for s in _stops()}
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.1)
                self.progress.refresh()
                if self.stopped:
                    self._end()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stopped:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name  # the main loop does the rest, lock in hand

    def _end(self) -> None:
        """Start nothing more, and end what runs."""
        self.schedule.stop()
        with self._lock:
            for process in self.processes:
                process.terminate()

    def _work(self) -> None:
        while (job := self.schedule.take()) is not None:
            self.progress.started(job)
            try:
                error = self._run(job)
            except Exception as problem:  # a full disk, no more processes: the others go on
                error = f"{type(problem).__name__}: {problem}"
                self._record_failure(job, error)
            if self.stopped:
                return
            state = schedule.FAILED if error else schedule.DONE
            for other in self.schedule.finish(job, state):
                reason = f"not run: {job.row} of seed {job.seed} failed, which it needs"
                self._record_failure(other, reason)
                self.progress.ended(other, reason)
            self.progress.ended(job, error)

    def _record_failure(self, job: Job, error: str) -> None:
        with contextlib.suppress(OSError):  # the progress says it; the disk may be full
            records.write(job.file(self.out), failed(job, error))

    def _run(self, job: Job) -> str:
        """Run a job in its process; an empty string, or why it failed."""
        file = job.file(self.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        message = json.dumps({"job": job.plain(), "out": str(self.out)}, default=str)
        process = self._start(job)
        if process is None:
            return ""
        try:
            last = self._follow(process, job, message)
            code = process.wait()
        finally:
            process.kill()
            with self._lock:
                self.processes.discard(process)
        if self.stopped:
            return ""
        if not file.is_file():
            records.write(file, failed(job, _death(code, last)))
        record = records.read(file)
        return "" if record.status == records.DONE else record.error

    def _follow(self, process: subprocess.Popen[str], job: Job, message: str) -> list[str]:
        """Hand a process its job and keep what it says; the last lines.

        The pipe to it stays open as long as this process lives, and closes with it.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        last: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        log_file = job.file(self.out).with_suffix(".log")
        with process.stdout, log_file.open("a", encoding="utf-8") as log:
            with contextlib.suppress(BrokenPipeError):  # it died at once, and its code says so
                process.stdin.write(message + "\n")
                process.stdin.flush()
            for line in process.stdout:
                log.write(line)
                log.flush()
                if text := line.strip():
                    last.append(text)
                    self.progress.said(job, text)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return list(last)

    def _start(self, job: Job) -> subprocess.Popen[str] | None:
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(job.threads))}
        with self._lock:
            if self.stopped:
                return None  # told to stop since this job was taken
            process = subprocess.Popen(
                [sys.executable, "-m", "recbole_kd.benchmark.job"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
            )
            self.processes.add(process)
        return process


def _stops() -> list[signal.Signals]:
    """Signals that end a benchmark; only a main thread may listen to them."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [signal.SIGINT, signal.SIGTERM]


def _death(code: int, last: Sequence[str]) -> str:
    """Why a process died that wrote no record."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    said = last[-1] if last else "it said nothing"
    return f"exit code {code}: {said}"
