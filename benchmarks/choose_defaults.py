"""What ships as RCE-KD's defaults: validation NDCG@10 of the candidates, three seeds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median_high
from typing import Any

import torch
from common import distil, mean_spread, need_data, parser, provenance
from tabulate import tabulate

RELEASED = {
    "kd_rows": "interaction",
    "refresh_every": 1,
    "rcekd_overlap": "sample",
    "rcekd_K": 50,
    "rcekd_L": 50,
}
BY_USER = {**RELEASED, "kd_rows": "user", "refresh_every": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "interaction rows, refresh 1 (released)": RELEASED,
    "user rows, refresh 1": {**BY_USER, "refresh_every": 1},
    "user rows, refresh 3": BY_USER,
    "user rows, refresh 3, overlap with Q_S": {**BY_USER, "rcekd_overlap": "student_topk"},
    "user rows, refresh 3, K = L = 100": {**BY_USER, "rcekd_K": 100, "rcekd_L": 100},
}


def run(dataset: str, variant: dict[str, Any], seed: int, options: Any) -> dict[str, float]:
    """One training run; teachers are shared through the cache."""
    protocol = "rcekd" if dataset == "citeulike" else None
    result, seconds = distil(
        dataset, "BPR", "BPR", seed, options, protocol=protocol, scratch=False, **variant
    )
    return {
        "seed": seed,
        "valid": result["best_valid_score"],
        "test": result["test_result"]["ndcg@10"],
        "test20": result["test_result"]["ndcg@20"],
        "teacher": result["teacher_test_result"]["ndcg@10"],
        "best_epoch": result["best_epoch"],
        "per_epoch": median_high(seconds),
        "to_best": sum(seconds[: result["best_epoch"] + 1]),
    }


def write(found: dict[tuple[str, str], list[dict[str, float]]], options: Any) -> None:
    """The table so far."""
    rows = [
        [
            dataset,
            variant,
            len(runs),
            mean_spread([r["valid"] for r in runs]),
            mean_spread([r["test"] for r in runs]),
            mean_spread([r["test20"] for r in runs]),
            mean_spread([r["test"] / r["teacher"] for r in runs]),
            f"{sum(r['best_epoch'] for r in runs) / len(runs):.0f}",
            f"{sum(r['per_epoch'] for r in runs) / len(runs):.2f}",
            f"{sum(r['to_best'] for r in runs) / len(runs):.0f}",
        ]
        for (dataset, variant), runs in found.items()
    ]
    headers = ["data", "variant", "seeds", "valid N@10", "test N@10", "test N@20"]
    headers += ["test N@10 / teacher", "best epoch", "s/epoch", "s to best epoch"]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    out = Path(options.out or "results/defaults")
    out.mkdir(parents=True, exist_ok=True)
    text = f"# Defaults of RCE-KD\n\n{table}\n\n{provenance(options.seeds)}\n"
    text += f"- {options.note}\n" if options.note else ""
    (out / "rcekd.md").write_text(text, encoding="utf-8")
    data = {f"{d} / {v}": runs for (d, v), runs in found.items()}
    (out / "rcekd.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """All variants and seeds; a run that was stopped goes on."""
    options = parser(__doc__ or "")
    options.add_argument("--datasets", nargs="+", default=["citeulike", "ml-100k"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants to run")
    options.add_argument("--raw", default=None, help="users.dat of citeulike-t")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in chosen.seeds:
        for dataset in chosen.datasets:
            if dataset == "citeulike":
                need_data(dataset, chosen.data_path, chosen.raw, dataset)
            for name, variant in VARIANTS.items():
                if name not in chosen.only:
                    continue
                result = run(dataset, variant, seed, chosen)
                found.setdefault((dataset, name), []).append(result)
                write(found, chosen)
    print((Path(chosen.out or "results/defaults") / "rcekd.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
