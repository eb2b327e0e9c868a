"""The RCE-KD paper's CiteULike rows: `recbole-kd benchmark` and `report` on the files in `bench/`.

    python benchmarks/reproduce_citeulike.py --pair=MF-MF --methods=all --seeds=0,1,2
    python benchmarks/reproduce_citeulike.py --pair=all --methods=RCEKD,DCD,RRD,CD --seeds=0

What was run before is kept, what was stopped goes on. Writes `<out>/<pair>.md` and the same as
HTML, LaTeX and CSV.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import need_data

from recbole_kd.cli import main as recbole_kd

BENCH = Path(__file__).parent / "bench"
FILES = {
    "MF-MF": "citeulike.yaml",
    **dict.fromkeys(
        ("LightGCN-LightGCN", "HSTU-HSTU", "LightGCN-MF", "HSTU-MF"), "citeulike-pairs.yaml"
    ),
}
"""Pair -> the benchmark it is part of."""

FAILED = 1
"""Exit code of a benchmark that ran to its end with a run that failed; larger ones stopped it."""


def main() -> int:
    """Run what is missing of the chosen pairs, and write their reports.

    Returns:
        0; 1 if a run failed; else what ended it.
    """
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--pair", choices=[*FILES, "all"], default="MF-MF")
    options.add_argument("--methods", default="all", help="all, or rows with commas between")
    options.add_argument("--seeds", default="all", help="all of the file, or such as 0,1,2")
    options.add_argument("--jobs", type=int, help="runs at a time, instead of the file's")
    options.add_argument("--raw", help="users.dat of citeulike-t, where it is not converted yet")
    options.add_argument("--out", default="results/citeulike", help="folder of the reports")
    chosen = options.parse_args()
    need_data("citeulike", "dataset", chosen.raw, "citeulike")
    part = {"methods": chosen.methods, "seeds": chosen.seeds}
    out = [f"--out={chosen.out}"]
    words = [f"--{key}={value}" for key, value in part.items() if value != "all"]
    words += [] if chosen.jobs is None else [f"--jobs={chosen.jobs}"]
    worst = 0
    pairs = list(FILES) if chosen.pair == "all" else [chosen.pair]
    for name in dict.fromkeys(FILES[pair] for pair in pairs):
        here = [pair for pair in pairs if FILES[pair] == name]
        file, folder = BENCH / name, Path("benchmark_runs", Path(name).stem)
        code = recbole_kd(["benchmark", str(file), f"--pairs={','.join(here)}", *words])
        for pair in here if code <= FAILED else ():
            code = max(code, recbole_kd(["report", str(folder), f"--pair={pair}", *out]))
        if code > FAILED:
            return code
        worst = max(worst, code)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
