"""The RCE-KD paper's CiteULike rows: teacher, scratch student and every method, over several seeds.

    python benchmarks/reproduce_citeulike.py --pair=MF-MF --methods=all --seeds=0,1,2
    python benchmarks/reproduce_citeulike.py --pair=all --methods=RCEKD,DCD,HetComp,RRD,CD --seeds=0

The paper's LightGCN teacher has d = 2000, ours 400 unless ``--teacher_size`` says otherwise.

Paper's protocol (``--protocol=rcekd``): ready-made split, all items but the user's train items
ranked, early stopping on validation NDCG@10 with patience 30. A run that was stopped goes on; the
result keeps the runs of earlier calls, so that methods and seeds can be run one by one.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median_high
from typing import Any

import torch
from common import commit, distil, mean_spread, need_data, parser, provenance, whole_numbers
from tabulate import tabulate

from recbole_kd.registry import SCRATCH, method_names
from recbole_kd.reporting import published

PAIRS = {
    "MF-MF": ("BPR", "BPR"),
    "LightGCN-LightGCN": ("LightGCN", "LightGCN"),
    "HSTU-HSTU": ("HSTU", "HSTU"),
    "LightGCN-MF": ("LightGCN", "BPR"),
    "HSTU-MF": ("HSTU", "BPR"),
}
"""Name in the paper -> models of teacher and student."""

METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
PUBLISHED = {"teacher": "Teacher", "scratch": "Scratch"}
"""Name here -> name of the published row, where they differ."""

Runs = dict[str, dict[str, dict[str, Any]]]
"""Name in the table -> seed -> what was measured."""


def run(pair: str, method: str, seed: int, options: Any) -> dict[str, dict[str, Any]]:
    """One seed of a method; what was measured of it, of its teacher and of the scratch student."""
    teacher, student = PAIRS[pair]
    more = {"protocol": "rcekd", "recipe": options.recipe}
    size = options.teacher_size if teacher == "LightGCN" else None
    asked = {"embedding_size": size, "save_every": options.save_every}
    more |= {f"teacher.{key}": value for key, value in asked.items() if value}
    result, seconds = distil("citeulike", student, teacher, seed, options, method, **more)
    best = result["best_epoch"]
    sizes = {row["role"]: row["parameters"] for row in result["sizes"]}
    return {
        "teacher": {"test": result["teacher_test_result"], "parameters": sizes["teacher"]},
        "scratch": {"test": result["scratch_test_result"]},
        method: {
            "test": result["test_result"],
            "best_valid": result["best_valid_score"],
            "best_epoch": best,
            "epochs": len(seconds),
            "seconds_per_epoch": median_high(seconds),
            "seconds_to_best_epoch": sum(seconds[: best + 1]),
            "commit": commit(),
        },
    }


def summary(pair: str, runs: Runs) -> str:
    """One line a model and one of the paper, as Markdown; the best first."""
    paper = published.load("rcekd")["citeulike"][pair]
    found = {
        name: mean(r["test"]["ndcg@10"] for r in by_seed.values()) for name, by_seed in runs.items()
    }
    methods = sorted(set(runs) - {"teacher", "scratch"}, key=lambda name: -found[name])
    lines = []
    for name in ("teacher", *methods, "scratch"):
        by_seed = list(runs[name].values())
        tests = [mean_spread([r["test"][m] for r in by_seed]) for m in METRICS]
        rest = ["", "", ""]
        if name in methods:
            rest = [
                f"{mean(r['best_valid'] for r in by_seed):.4f}",
                f"{mean(r['best_epoch'] for r in by_seed):.0f}",
                f"{median_high(r['seconds_per_epoch'] for r in by_seed):.2f}",
            ]
        lines.append([name, *tests, *rest, ", ".join(sorted(runs[name]))])
        theirs = paper.get(PUBLISHED.get(name, name))
        if theirs:
            share = f"{found[name] / theirs['ndcg@10'] - 1:+.0%} NDCG@10"
            lines.append(["  paper", *(f"{theirs[m]:.4f}" for m in METRICS), share, "", "", ""])
    headers = ["model", *METRICS, "valid ndcg@10", "best epoch", "s/epoch", "seeds"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def per_seed(runs: Runs) -> str:
    """Test NDCG@10 / NDCG@20 of every run, as Markdown."""
    seeds = sorted({seed for by_seed in runs.values() for seed in by_seed}, key=int)
    lines = []
    for name, by_seed in runs.items():
        cells = []
        for seed in seeds:
            test = by_seed[seed]["test"] if seed in by_seed else None
            cells.append(f"{test['ndcg@10']:.5f} / {test['ndcg@20']:.5f}" if test else "")
        commits = {r["commit"] for r in by_seed.values() if "commit" in r}
        lines.append([name, *cells, ", ".join(sorted(commits))])
    headers = ["NDCG@10 / NDCG@20", *(f"seed {s}" for s in seeds), "commit"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def write(pair: str, runs: Runs, options: Any) -> None:
    """The result as Markdown and JSON."""
    path = result_file(pair, options)
    seeds = sorted({int(seed) for by_seed in runs.values() for seed in by_seed})
    text = (
        f"# CiteULike, {pair}, recipe {options.recipe}\n\nMean ± sample standard deviation over "
        "the seeds named; test metrics of the best validation epoch.\n\n"
        f"{summary(pair, runs)}\n\n{per_seed(runs)}\n\n{provenance(seeds)}\n"
        "- protocol: rcekd (ready-made split; validation items stay in the test ranking; patience "
        f"30 on validation NDCG@10)\n{teacher_line(runs)}"
        + (f"- {options.note}\n" if options.note else "")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    path.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(text)


def teacher_line(runs: Runs) -> str:
    """How large the teacher is, as a line of Markdown."""
    sizes = {f"{r['parameters']:,}" for r in runs["teacher"].values() if "parameters" in r}
    return f"- teacher: {', '.join(sorted(sizes))} parameters\n" if sizes else ""


def result_file(pair: str, options: Any) -> Path:
    """Where the runs of all calls are kept."""
    name = pair if options.recipe == "auto" else f"{pair}-{options.recipe}"
    return Path(options.out or "results/citeulike") / f"{name}.json"


def main() -> None:
    """Run all methods and seeds, writing the table after each."""
    options = parser(__doc__ or "")
    options.add_argument("--pair", choices=[*PAIRS, "all"], default="MF-MF")
    options.add_argument("--teacher_size", type=int, help="embedding_size of LightGCN teachers")
    options.add_argument("--save_every", type=int, help="teacher's, so that HetComp can share it")
    options.add_argument("--methods", default="RCEKD", help="all, or names with commas between")
    options.add_argument("--recipe", default="auto", help="auto, or a variant such as released")
    options.add_argument("--seeds", type=whole_numbers, default=[0, 1, 2], help="such as 0,1,2")
    options.add_argument("--raw", default=None, help="users.dat of citeulike-t")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    need_data("citeulike", chosen.data_path, chosen.raw, "citeulike")
    known = [name for name in method_names() if name != SCRATCH]
    methods = known if chosen.methods == "all" else chosen.methods.split(",")
    for pair in PAIRS if chosen.pair == "all" else [chosen.pair]:
        file = result_file(pair, chosen)
        runs: Runs = json.loads(file.read_text()) if file.is_file() else {}
        for method in methods:
            for seed in chosen.seeds:
                for name, measured in run(pair, method, seed, chosen).items():
                    runs.setdefault(name, {})[str(seed)] = measured
                write(pair, runs, chosen)


if __name__ == "__main__":
    main()
