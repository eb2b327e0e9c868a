"""Cost of an RCE-KD epoch: refresh, training, evaluation, memory, beside a plain student epoch.

With ``--reference "command"`` another implementation is timed in the same run, turn and turn about:
the command must print JSON lines with ``epoch_s``. The teacher is trained for one epoch only; its
quality does not change the cost.
"""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import Any

import torch
from common import measure, need_data, parser, provenance
from tabulate import tabulate

from recbole_kd import training
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.methods.rcekd import RCEKD
from recbole_kd.options import Sources
from recbole_kd.teacher import FrozenTeacher

SETTINGS: dict[str, dict[str, Any]] = {
    "citeulike": {"teacher.embedding_size": 400, "rcekd_K": 50, "rcekd_L": 50, "rcekd_M": 200},
    "gowalla": {
        "teacher.embedding_size": 300,
        "rcekd_K": 100,
        "rcekd_L": 50,
        "rcekd_M": 100,
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "BPR": {},
    "LightGCN": {"teacher.embedding_size": 400, "rcekd_L": 100, "n_layers": 3, "reg_weight": 0.0},
}
"""Model of teacher and student -> what differs from the data set's settings."""
VARIANTS = {
    "rows by interaction, refresh every epoch": ("interaction", 1),
    "rows by user, refresh every epoch": ("user", 1),
    "rows by user, refresh every 3rd epoch": ("user", 3),
}
SHIPPED = "rows by user, refresh every 3rd epoch"


def config_for(dataset: str, options: Any, role: str = "student", **more: Any) -> KDConfig:
    """Configuration of one role in the benchmark's setting."""
    given = {
        **SETTINGS[dataset],
        **MODELS[options.model],
        "student.embedding_size": 20,
        "recipe": "none",
        "protocol": "rcekd",
        "data_path": options.data_path,
        "show_progress": False,
        "state": "WARNING",
        **more,
    }
    sources = Sources.collect("RCEKD", dataset, options.model, options.model, options=given)
    return KDConfig(sources, role)


def reference(command: str) -> float:
    """Median ``epoch_s`` that another implementation prints."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    found = []
    for line in done.stdout.splitlines():
        if line.startswith("{") and '"epoch_s' in line:
            record = json.loads(line)
            found.append(record.get("epoch_s", record.get("epoch_s_extrapolated")))
    return median_high(found)


def median(records: list[dict], key: str) -> float:
    """Median of one figure."""
    return median_high(r[key] for r in records)


def parse() -> Any:
    """The script's options."""
    options = parser(__doc__ or "")
    options.add_argument("--dataset", choices=sorted(SETTINGS), default="citeulike")
    options.add_argument("--model", choices=sorted(MODELS), default="BPR", help="of both roles")
    options.add_argument("--epochs", type=int, default=3, help="counted epochs a round")
    options.add_argument("--rounds", type=int, default=2, help="rounds, the reference between them")
    options.add_argument("--raw", default=None)
    options.add_argument("--reference", default=None, help="command of another implementation")
    options.add_argument(
        "--best_epochs",
        type=int,
        nargs=2,
        metavar=("OURS", "REFERENCE"),
        help="epochs to the best validation, with the shipped rows and with the reference's",
    )
    return options.parse_args()


@dataclass
class Timings:
    """Seconds of every counted epoch.

    Attributes:
        plain: Epochs of the student alone.
        ours: Epochs of each of :data:`VARIANTS`.
        others: An epoch of the reference, once a round.
        setup: Seconds of the teacher's top lists, once a run.
    """

    plain: list[dict]
    ours: dict[str, list[dict]]
    others: list[float]
    setup: float

    @property
    def other(self) -> float | None:
        """Median of the reference, or ``None``."""
        return median_high(self.others) if self.others else None


def time_all(options: Any, folder: str) -> Timings:
    """All variants, turn and turn about with the reference and the student alone."""
    split = load_split(config_for(options.dataset, options))
    more = {"teacher.epochs": 1, "checkpoint_dir": folder}
    teacher_config = config_for(options.dataset, options, "teacher", **more)
    trained = training.train_cached(teacher_config, split)
    ids = (torch.arange(split.history.n_users), torch.arange(split.history.n_items))
    teacher = FrozenTeacher(trained.scorer, *ids, split.history)
    started = time.perf_counter()
    teacher.top_k(SETTINGS[options.dataset]["rcekd_K"])
    found = Timings([], {name: [] for name in VARIANTS}, [], time.perf_counter() - started)
    for _ in range(options.rounds):
        if options.reference:
            found.others.append(reference(options.reference))
        found.plain += measure(config_for(options.dataset, options), split, options.epochs)
        for name, (rows, every) in VARIANTS.items():
            config = config_for(options.dataset, options, kd_rows=rows, refresh_every=every)
            epochs = 3 * max(1, options.epochs // 3)  # whole refresh periods
            found.ours[name] += measure(config, split, epochs, RCEKD, teacher)
    return found


def table(found: Timings) -> str:
    """The epochs side by side, as Markdown."""
    base, other = median(found.plain, "train"), found.other
    eval_s = f"{median(found.plain, 'eval'):.2f}"
    lines = [["plain student", "-", f"{base:.2f}", eval_s, "1.0", "-"]]
    for name, records in found.ours.items():
        refresh = sum(r["refresh"] for r in records) / len(records)
        train = median(records, "train")
        lines.append(
            [
                f"RCE-KD, {name}",
                f"{refresh:.2f}",
                f"{train:.2f}",
                f"{median(records, 'eval'):.2f}",
                f"{(refresh + train) / base:.1f}",
                "-" if other is None else f"{other / (refresh + train):.1f}x",
            ]
        )
    if other is not None:
        last = ["reference implementation", "", f"{other:.2f}", "", f"{other / base:.1f}", "1"]
        lines.append(last)
    headers = ["", "refresh s", "train s", "eval s", "x plain epoch", "faster than reference"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def whole_run(found: Timings, epochs: tuple[int, int] | None) -> str:
    """A run to its best epoch beside the reference's, as a line of Markdown, or nothing."""
    if epochs is None or found.other is None:
        return ""
    # An epoch of ours counts its evaluation; the reference's is not printed, and left out.
    records = found.ours[SHIPPED]
    mine = epochs[0] * sum(sum(r.values()) for r in records) / len(records)
    theirs = epochs[1] * found.other
    return (
        f"- a run to its best epoch, {SHIPPED}: {epochs[0]} epochs, {mine:.0f} s with evaluation; "
        f"reference: {epochs[1]} epochs, {theirs:.0f} s without evaluation; {theirs / mine:.1f}x\n"
    )


def main() -> None:
    """Print and write the table."""
    chosen = parse()
    torch.set_num_threads(chosen.threads)
    form = "citeulike" if chosen.dataset == "citeulike" else "lightgcn"
    need_data(chosen.dataset, chosen.data_path, chosen.raw, form)
    with tempfile.TemporaryDirectory() as folder:
        found = time_all(chosen, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    width = config_for(chosen.dataset, chosen, "teacher")["embedding_size"]
    model, name = chosen.model, chosen.dataset
    text = (
        f"# Cost of an epoch, {name}\n\n{model} d={width} -> {model} d=20. Seconds; "
        f"refresh is the mean an epoch, the rest medians.\n\n{table(found)}\n\n"
        f"- once a run: the teacher's top lists, {found.setup:.2f} s\n"
        f"- peak memory {peak:.2f} GiB\n{whole_run(found, chosen.best_epochs)}"
        f"{provenance([2020])}\n" + (f"- {chosen.note}\n" if chosen.note else "")
    )
    out = Path(chosen.out or "results/epoch_cost")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name if model == 'BPR' else f'{name}-{model}'}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
