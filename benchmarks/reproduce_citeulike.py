"""The RCE-KD paper's CiteULike row: teacher, scratch student, RCE-KD, over several seeds.

Paper's protocol (``--protocol=rcekd``): ready-made split, all items but the user's train items
ranked, early stopping on validation NDCG@10 with patience 30. A run that was stopped goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median_high
from typing import Any

import torch
from common import distil, mean_spread, need_data, parser, provenance
from tabulate import tabulate

PAIRS = {"MF-MF": ("BPR", "BPR")}
METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
PAPER = {
    # Table 1 of arXiv 2509.20989, CiteULike.
    "MF-MF": {
        "teacher": (0.0283, 0.0155, 0.0442, 0.0198),
        "student, from scratch": (0.0177, 0.0098, 0.0284, 0.0128),
        "student, RCE-KD": (0.0278, 0.0152, 0.0431, 0.0194),
    }
}


def run(pair: str, seed: int, options: Any) -> dict[str, Any]:
    """One seed: all three models."""
    teacher, student = PAIRS[pair]
    result, seconds = distil(
        "citeulike", student, teacher, seed, options, protocol="rcekd", recipe=options.recipe
    )
    return {
        "seed": seed,
        "teacher": result["teacher_test_result"],
        "student, from scratch": result["scratch_test_result"],
        "student, RCE-KD": result["test_result"],
        "best_valid": result["best_valid_score"],
        "best_epoch": result["best_epoch"],
        "epochs": len(seconds),
        "seconds_per_epoch": median_high(seconds),
        "seconds_to_best_epoch": sum(seconds[: result["best_epoch"] + 1]),
    }


def write(pair: str, runs: list[dict[str, Any]], options: Any) -> Path:
    """The result as Markdown and JSON."""
    lines = []
    for role, paper in PAPER[pair].items():
        values = [mean_spread([r[role][m] for r in runs]) for m in METRICS]
        lines.append([role, *values])
        lines.append(["  paper", *(f"{v:.4f}" for v in paper)])
    share = [
        mean_spread([r["student, RCE-KD"][m] / r["teacher"][m] for r in runs]) for m in METRICS
    ]
    lines.append(["RCE-KD / its teacher", *share])
    table = tabulate(lines, headers=["model", *METRICS], tablefmt="github", disable_numparse=True)
    per_seed = tabulate(
        [
            [
                r["seed"],
                *(f"{r[role]['ndcg@10']:.5f} / {r[role]['ndcg@20']:.5f}" for role in PAPER[pair]),
                f"{r['best_valid']:.5f}",
                r["best_epoch"],
                f"{r['seconds_per_epoch']:.2f}",
                f"{r['seconds_to_best_epoch']:.0f}",
            ]
            for r in runs
        ],
        headers=[
            "seed",
            *(f"{role}: test N@10 / N@20" for role in PAPER[pair]),
            "RCE-KD: valid N@10",
            "best epoch",
            "s/epoch (median)",
            "s to best epoch",
        ],
        tablefmt="github",
        disable_numparse=True,
    )
    out = Path(options.out or "results/citeulike")
    out.mkdir(parents=True, exist_ok=True)
    name = pair if options.recipe == "auto" else f"{pair}-{options.recipe}"
    text = (
        f"# CiteULike, {pair}, recipe {options.recipe}\n\nMean ± sample standard deviation over "
        f"{len(runs)} seeds; test metrics of the best validation epoch.\n\n"
        f"{table}\n\n{per_seed}\n\n"
        f"{provenance([r['seed'] for r in runs])}\n- protocol: rcekd (ready-made split; validation "
        "items stay in the test ranking; patience 30 on validation NDCG@10)\n"
        + (f"- {options.note}\n" if options.note else "")
    )
    path = out / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(text)
    return path


def main() -> None:
    """Run all seeds, writing the table after each."""
    options = parser(__doc__ or "")
    options.add_argument("--pair", choices=sorted(PAIRS), default="MF-MF")
    options.add_argument("--recipe", default="auto", help="auto, or a variant such as released")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--raw", default=None, help="users.dat of citeulike-t")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    need_data("citeulike", chosen.data_path, chosen.raw, "citeulike")
    runs = []
    for seed in chosen.seeds:
        runs.append(run(chosen.pair, seed, chosen))
        write(chosen.pair, runs, chosen)


if __name__ == "__main__":
    main()
