"""The command line: ``recbole-kd train | benchmark | report | tune | ...``; see ``USAGE``."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_kd import __version__
from recbole_kd.errors import KDError, did_you_mean

USAGE = """\
recbole-kd: knowledge distillation for RecBole models

  recbole-kd train --model=RCEKD --student=BPR --teacher=BPR --dataset=ml-100k [--key=value ...]
      -m, -d              short for --model, --dataset
      --model             distillation method, or Scratch to train the student alone
      --student.KEY=VALUE, --teacher.KEY=VALUE
                          an option of one model only; --teacher.checkpoint=PATH loads a teacher
      --teacher=FILE      the same for .pt and .pth, or scores in a .parquet, .csv or .npz
      --teacher="[a.pth, b.pth]"
                          several teachers, combined as --teacher_combine says
      --config_files="a.yaml b.yaml"
                          files of options; command line > dictionary > files > shipped defaults
      --resume=auto       go on with a run that was stopped
  recbole-kd benchmark <bench.yaml>
      every method, seed, pair and data set of a file; a benchmark that was stopped goes on
      --out=FOLDER --jobs=2 --threads=1; --dry_run lists the runs, --dry_run=measure also times them
      --pairs=MF-MF --methods=RCEKD,CD --seeds=0,1
                          only these of the file's runs, and the teachers they need
  recbole-kd tune --model=RRD --student=BPR --teacher=BPR --dataset=ml-100k [--key=value ...]
      search the method's options by the validation metric; options as for train, and
      --trials=30         trials in all, those of earlier calls included
      --params_file=FILE  what is searched: RecBole's .hyper format, or ranges in a .yaml
      --study=FOLDER      where the search lives; the same command goes on with it
      --pruner=none       no trial is stopped early; --warmup_epochs=10: none before that epoch
  recbole-kd convert <format> <raw> <out> [--option=value ...]
      formats: citeulike, rcekd, lightgcn, sequences
  recbole-kd export <run folder or best.pt> <student.pth>
      write a student in RecBole's own form
  recbole-kd teacher-scores <run folder or checkpoint> <scores.parquet | .csv | .npz>
      write a model's best items of every user, for --teacher=scores.parquet
      --top_k=500 --mask_train=False --memory_budget_gb=0.1
  recbole-kd report <folder of a benchmark>
      tables, tests, sizes, latencies and figures, in <folder>/report
      --out=FOLDER --metric=ndcg@20 --latency=False --formats=md,tex,csv,html
      --pair=MF-MF        of one pair, in files of its name
  recbole-kd pairs
      which method works with which teacher and student
  recbole-kd doctor
      versions, what was adapted, and the command for anything missing
  recbole-kd --version
"""


PARTS = {"pairs": "pairs", "rows": "methods", "seeds": "seeds"}
"""Which runs of a benchmark are chosen: argument of its ``select`` -> option."""

GOES_ON = {
    "train": "; --resume=auto goes on from what was saved last",
    "tune": "; the same command goes on",
}
"""What is said of a command that was stopped by Ctrl-C."""


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


def _traceback() -> None:
    """Where the error came from, for those who run with ``--state=DEBUG``."""
    logging.getLogger(__name__).debug("refused here", exc_info=True)


def _long_options(arguments: Sequence[str]) -> list[str]:
    """``-m X`` and ``--key X`` of the four names, in the ``--key=value`` form of all others."""
    short = {"-m": "--model", "-d": "--dataset"}
    spaced = {"--model", "--dataset", "--student", "--teacher", "--config_files"}
    result: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        head, equals, value = word.partition("=")
        head = short.get(head, head)
        if not equals and head in spaced:
            if not rest or rest[0].startswith("-"):
                raise KDError(f"command line: {head} needs a value")
            equals, value = "=", rest.pop(0)
        result.append(head + equals + value)
    return result


def train(arguments: Sequence[str]) -> int:
    """``recbole-kd train``: one call of :func:`recbole_kd.quick_start.run_recbole_kd`."""
    from recbole_kd.options import parse_arguments
    from recbole_kd.quick_start import run_recbole_kd

    options = parse_arguments(_long_options(arguments))
    files = str(options.pop("config_files", "") or "").split()
    result = run_recbole_kd(config_file_list=files, command_line=options)
    _say(f"{result['table']}\n\n{result['protocol']}")
    return 0


def benchmark(arguments: Sequence[str]) -> int:
    """``recbole-kd benchmark``: all runs of a file."""
    from recbole_kd.benchmark import estimate, plan, runner, spec

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    (file,), options = _split(
        arguments,
        "benchmark",
        ("bench.yaml",),
        ("out", "jobs", "threads", "dry_run", "pairs", "methods", "seeds"),
    )
    asked = spec.read(file, **{key: options.get(key) for key in ("jobs", "threads")})
    known = {"pairs": [p.name for p in asked.pairs], "methods": [r.name for r in asked.rows]}
    part = {
        key: _listed(name, options[name], known.get(name, []))
        for key, name in PARTS.items()
        if name in options
    }
    said = options.get("out") or Path("benchmark_runs", Path(file).stem)
    if said is True:
        raise KDError("--out=True: needs the name of a folder")
    out, dry = Path(said), options.get("dry_run", False)
    if dry not in (True, False, "measure"):
        raise KDError(f"--dry_run={dry}: allowed are True, False and measure")
    try:
        if dry:
            jobs = plan.select(plan.jobs_of(asked, out), **part)
            _say(estimate.dry_run(jobs, asked, out, measure=dry == "measure"))
            return 0
        # The report's command makes the whole of what it shows.
        flags = tuple(f"--{name}=" for name in PARTS.values())
        whole = [a for a in arguments if not a.startswith(flags)]
        command = "recbole-kd benchmark " + shlex.join(whole)
        return runner.run_benchmark(asked, out, command, part=part)
    except KeyboardInterrupt:
        sys.stderr.write(f"recbole-kd: stopped; the same command goes on in {out}\n")
        return 130


def _listed(option: str, said: Any, known: Sequence[str]) -> list[str]:
    """The words of ``a,b``, ``[a, b]``, or a single one, which may have commas if it is known."""
    words = said if isinstance(said, list) else [said] if said in known else str(said).split(",")
    found = [str(word).strip() for word in words]
    if said is None or not all(found) or not found:
        raise KDError(f"--{option}={said}: needed is a name, or several with commas between")
    return found


def _split(
    arguments: Sequence[str],
    command: str,
    names: Sequence[str],
    known: Sequence[str] | None = (),
) -> tuple[list[str], dict[str, Any]]:
    """The words of a command and its options.

    Args:
        arguments: What was said.
        command: Name of the command, for messages.
        names: Names of the words it takes.
        known: Options it takes; ``None``: it looks at them itself.

    Raises:
        KDError: There are other words or options.
    """
    from recbole_kd.options import parse_arguments

    words = [a for a in arguments if not a.startswith("--")]
    if len(words) != len(names):
        shown = " ".join(f"<{name}>" for name in names)
        raise KDError(f"{command}: found {len(words)} of the arguments {shown}")
    options = parse_arguments([a for a in arguments if a.startswith("--")])
    for key in options:
        if known is not None and key not in known:
            shown = ", ".join(f"--{name}" for name in known) or "none"
            raise KDError(
                f"{command}: there is no option --{key}.{did_you_mean(key, known)} "
                f"Allowed are {shown}"
            )
    return words, options


def tune(arguments: Sequence[str]) -> int:
    """``recbole-kd tune``: one call of :func:`recbole_kd.tuning.tune`."""
    from recbole_kd.options import parse_arguments
    from recbole_kd.tuning import tune as run
    from recbole_kd.tuning.search import SETTINGS

    options = parse_arguments(_long_options(arguments))
    files = str(options.pop("config_files", "") or "").split()
    own = {key: options.pop(key) for key in SETTINGS if key in options}
    result = run(config_file_list=files, command_line=options, **own)
    _say(f"{result['table']}\n\n{result['protocol']}\n\nrecipe: {result['recipe']}")
    return 0


def convert(arguments: Sequence[str]) -> int:
    """``recbole-kd convert``: raw files to RecBole's atomic files."""
    from recbole_kd.convert import FORMATS
    from recbole_kd.convert import convert as run

    names = (" | ".join(FORMATS), "raw", "out")
    (form, raw, out), options = _split(arguments, "convert", names, known=None)
    _say(run(form, raw, out, **options).summary())
    return 0


def export(arguments: Sequence[str]) -> int:
    """``recbole-kd export``: a checkpoint of ours to RecBole's own ``.pth``."""
    from recbole_kd.deploy import export_recbole

    (source, target), _ = _split(arguments, "export", ("checkpoint", "student.pth"))
    _say(f"written {export_recbole(source, target)}")
    return 0


def teacher_scores(arguments: Sequence[str]) -> int:
    """``recbole-kd teacher-scores``: a model's best items as a score file."""
    from recbole_kd.score_writer import write_scores

    plain, options = _split(
        arguments,
        "teacher-scores",
        ("checkpoint", "scores.parquet"),
        ("top_k", "mask_train", "memory_budget_gb"),
    )
    _say(write_scores(plain[0], plain[1], **options).summary())
    return 0


def report(arguments: Sequence[str]) -> int:
    """``recbole-kd report``: the report of a benchmark's folder."""
    from recbole_kd.reporting import FORMATS, write_report

    (folder,), options = _split(
        arguments, "report", ("folder",), ("out", "metric", "latency", "formats", "pair")
    )
    latency, formats = options.get("latency", True), options.get("formats") or FORMATS
    if not isinstance(latency, bool):
        raise KDError(f"--latency={latency}: allowed are True and False")
    if not isinstance(formats, list | tuple):
        formats = [word.strip() for word in str(formats).split(",")]
    said = {key: options.get(key) for key in ("out", "metric", "pair")}
    texts = {key: str(value) for key, value in said.items() if value is not None}
    for file in write_report(folder, latency=latency, formats=formats, **texts):
        _say(f"written {file}")
    return 0


def pairs(arguments: Sequence[str]) -> int:
    """``recbole-kd pairs``: which method works with which teacher and student."""
    from recbole_kd.pairs import tables

    if arguments:
        raise KDError(f"pairs: found {' '.join(arguments)}; allowed are no arguments")
    _say(tables())
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """``recbole-kd doctor``: versions, adaptations and remedies."""
    from recbole_kd.doctor import report

    text, problems = report()
    _say(text)
    return 1 if problems else 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "benchmark": benchmark,
    "tune": tune,
    "convert": convert,
    "export": export,
    "teacher-scores": teacher_scores,
    "report": report,
    "pairs": pairs,
    "doctor": doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit code: 0, 2 after one line that says what is wrong, 130 after Ctrl-C.
    """
    words: list[Any] = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        _say(USAGE)
        return 0
    if words == ["--version"]:
        _say(f"recbole-kd {__version__}")
        return 0
    try:
        command = COMMANDS.get(words[0])
        if command is None:
            raise KDError(
                f"'{words[0]}' is no command.{did_you_mean(words[0], COMMANDS)} "
                f"Known: {', '.join(COMMANDS)}"
            )
        return command(words[1:])
    except KDError as error:
        _traceback()
        sys.stderr.write(f"recbole-kd: {error}\n")
    except KeyboardInterrupt:
        _traceback()
        sys.stderr.write(f"recbole-kd: stopped{GOES_ON.get(words[0], '')}\n")
        return 130
    except OSError as error:
        _traceback()
        named = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"recbole-kd: {named}{error.strerror or error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
