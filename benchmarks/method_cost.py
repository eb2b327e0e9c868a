"""Cost of an epoch of every method on CiteULike, BPR d=400 -> BPR d=20, with its shipped recipe.

Each method runs in a process of its own, in which epochs of the plain student are timed between
the method's own. The teacher is trained for one epoch; its quality does not change the cost.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median, median_high
from typing import Any

import torch
from common import measure, need_data, parser, provenance
from tabulate import tabulate

from recbole_kd import training
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.options import Sources
from recbole_kd.registry import SCRATCH, method_class, method_names
from recbole_kd.teacher import FrozenTeacher

RELEASED = {"RCEKD": 15.3}
"""Seconds an epoch of the authors' code, two threads of an idle machine like this one."""


def config_for(method: str, options: Any, role: str = "student", **more: Any) -> KDConfig:
    """Configuration of one role with the method's recipe."""
    given = {
        "student.embedding_size": 20,
        "teacher.embedding_size": 400,
        "protocol": "rcekd",
        "data_path": options.data_path,
        "checkpoint_dir": options.checkpoint_dir,
        "show_progress": False,
        "state": "WARNING",
        **more,
    }
    sources = Sources.collect(method, "citeulike", "BPR", "BPR", options=given)
    return KDConfig(sources, role)


def one(method: str, options: Any) -> dict[str, float]:
    """Seconds and memory of one method and of the plain student beside it."""
    config = config_for(method, options)
    split = load_split(config)
    more = {"teacher.epochs": 1, "teacher.save_every": 0}
    trained = training.train_cached(config_for(method, options, "teacher", **more), split)
    ids = (torch.arange(split.history.n_users), torch.arange(split.history.n_items))
    teacher = FrozenTeacher(trained.scorer, *ids, split.history)
    teacher.trajectory = [lambda: teacher] * 8
    cls = method_class(method)
    assert cls is not None
    every = config["refresh_every"] if cls.refreshes else 1
    if cls.refreshes:
        # A refresh in every epoch, to be timed, and RD in the form that costs more.
        late = {"rd_start_epoch": 0} if method == "RD" else {}
        config = config_for(method, options, refresh_every=1, **late)
    plain, own = [], []
    for _ in range(options.rounds):
        plain += measure(config_for(SCRATCH, options), split, options.epochs)
        own += measure(config, split, options.epochs, cls, teacher)
    return {
        "plain": median_high(r["train"] for r in plain),
        "refresh": median_high(r["refresh"] for r in own),
        "every": every,
        "train": median_high(r["train"] for r in own),
        "eval": mean(r["eval"] for r in own),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def apart(method: str, options: Any) -> dict[str, float]:
    """:func:`one` in a process of its own, for its peak memory."""
    command = [sys.executable, __file__, "--one", method, "--threads", str(options.threads)]
    command += ["--data_path", options.data_path, "--checkpoint_dir", options.checkpoint_dir]
    command += ["--epochs", str(options.epochs), "--rounds", str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, float]]) -> str:
    """A line a method, cheapest first, as Markdown."""
    lines = []
    # The same student beside every method: how it differs is noise.
    plain = median(r["plain"] for r in found.values())
    for name, r in found.items():
        epoch = r["refresh"] / r["every"] + r["train"]
        released = RELEASED.get(name)
        lines.append(
            [
                name,
                f"{r['refresh']:.2f}",
                f"{r['every']:.0f}",
                f"{r['train']:.2f}",
                epoch,
                epoch / plain,
                f"{r['plain']:.2f}",
                f"{r['peak']:.2f}",
                f"{released:.1f}" if released else "",
            ]
        )
    lines.sort(key=lambda line: line[5])
    lines = [[*x[:4], f"{x[4]:.2f}", f"{x[5]:.1f}", *x[6:]] for x in lines]
    headers = ["method", "refresh s", "every", "train s", "s/epoch", "x plain epoch", "plain s"]
    headers += ["peak GiB", "released code s/epoch"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__ or "")
    options.add_argument("--methods", default="all", help="all, or names with commas between")
    options.add_argument("--epochs", type=int, default=3, help="counted epochs a round")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--raw", default=None, help="users.dat of citeulike-t")
    options.add_argument("--one", default=None, help="for the script's own use")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen)))
        return
    need_data("citeulike", chosen.data_path, chosen.raw, "citeulike")
    known = [name for name in method_names() if name != SCRATCH]
    methods = known if chosen.methods == "all" else chosen.methods.split(",")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen.checkpoint_dir = folder
        for method in methods:
            found[method] = apart(method, chosen)
            print(method, found[method], flush=True)
    text = (
        "# Cost of an epoch of every method, citeulike\n\nBPR d=400 -> BPR d=20, shipped recipe or "
        "defaults. Seconds, medians; s/epoch deals a refresh to the epochs between two of them. "
        "A plain epoch is the median of the column plain s, the same student beside each method. "
        "Peak memory is that of the process, data and teacher included."
        f"\n\n{table(found)}\n\n{provenance([2020])}\n"
        + (f"- {chosen.note}\n" if chosen.note else "")
    )
    out = Path(chosen.out or "results/method_cost")
    out.mkdir(parents=True, exist_ok=True)
    (out / "citeulike.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
