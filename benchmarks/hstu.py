"""HSTU beside SASRec: quality, speed and scaling; and the RCE-KD paper's HSTU rows on CiteULike.

    python benchmarks/hstu.py quality --dataset=Beauty --seeds 0 1 2
    python benchmarks/hstu.py speed
    python benchmarks/hstu.py scaling
    python benchmarks/hstu.py citeulike --models=teacher student

A quality run that was stopped goes on. Every choice is made on validation; test is measured once,
of the best validation epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import mean_spread, need_data, parser, provenance
from tabulate import tabulate

from recbole_kd import run_recbole_kd

METRICS = ("hit@10", "ndcg@10")
PEERS = Path(__file__).resolve().parent / "peers"

SAME = {
    # What every model of the comparison shares.
    "hidden_size": 64,
    "n_layers": 2,
    "n_heads": 2,
    "MAX_ITEM_LIST_LENGTH": 50,
    "filter_history": True,
    "metrics": ["Hit", "NDCG"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "epochs": 300,
}
HSTU = {"attention_dim": 32, "linear_dim": 32, "stopping_step": 20}
SASREC = {"inner_size": 256, "stopping_step": 20, "train_batch_size": 128}
NO_TIME = {"relative_bias": "none"}

VARIANTS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    # data set -> name -> (model, options), as chosen on validation
    "ml-100k": {
        "HSTU, time and position bias, next": ("HSTU", HSTU),
        "HSTU, time and position bias, current": ("HSTU", {**HSTU, "time_anchor": "current"}),
        "HSTU, position bias": ("HSTU", {**HSTU, "relative_bias": "position"}),
        "HSTU, no bias": ("HSTU", {**HSTU, **NO_TIME}),
        "SASRec, causal": ("SASRec", {**SASREC, "sequence_training": "causal"}),
        "SASRec, prefix (RecBole)": (
            "SASRec",
            {**SASREC, "train_batch_size": 2048, "stopping_step": 5},
        ),
    },
    "Beauty": {
        "HSTU": ("HSTU", {**HSTU, "relative_bias": "position"}),
        "HSTU, no bias": ("HSTU", {**HSTU, **NO_TIME}),
        "SASRec, causal": ("SASRec", {**SASREC, "sequence_training": "causal"}),
        "SASRec, prefix (RecBole)": (
            "SASRec",
            {**SASREC, "train_batch_size": 2048, "stopping_step": 5},
        ),
    },
}
CANDIDATES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    # What was compared on validation to choose VARIANTS.
    "Beauty": {
        f"HSTU {bias}, dropout {drop}, tau {tau}, {loss}": (
            "HSTU",
            {
                **HSTU,
                "relative_bias": bias,
                "hidden_dropout_prob": drop,
                "linear_dropout_prob": drop,
                "temperature": tau,
                **(
                    {"loss_type": "full_softmax"}
                    if loss == "full"
                    else {"num_negatives": int(loss)}
                ),
            },
        )
        for bias, drop, tau, loss in (
            ("position", 0.5, 0.05, "256"),
            ("none", 0.5, 0.05, "256"),
            ("position", 0.2, 0.05, "256"),
            ("position", 0.5, 0.1, "256"),
            ("position", 0.5, 0.05, "1024"),
            ("position", 0.5, 0.05, "full"),
            ("position", 0.7, 0.05, "256"),
        )
    }
    | {
        f"SASRec causal, dropout {drop}": (
            "SASRec",
            {
                **SASREC,
                "sequence_training": "causal",
                "hidden_dropout_prob": drop,
                "attn_dropout_prob": drop,
            },
        )
        for drop in (0.5, 0.2)
    },
}
BEAUTY = {
    # What the YAML file of the converted data set says.
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
}


def train(dataset: str, model: str, seed: int, chosen: Any, **options: Any) -> dict[str, Any]:
    """One model trained alone; its results and what its epochs cost."""
    result = run_recbole_kd(
        "Scratch",
        dataset,
        student=model,
        config_dict={
            "seed": seed,
            "resume": "auto",
            "data_path": chosen.data_path,
            "checkpoint_dir": chosen.checkpoint_dir,
            "show_progress": False,
            **options,
        },
    )
    folder = Path(result["checkpoints"]["student"]).parent
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [sum(line["seconds"].values()) for line in log]
    return {
        "seed": seed,
        "test": result["test_result"],
        "valid": result["best_valid_score"],
        "best_epoch": result["best_epoch"],
        "seconds_per_epoch": float(np.median([line["seconds"]["train"] for line in log])),
        "seconds_to_best": sum(seconds[: result["best_epoch"] + 1]),
        "parameters": result["sizes"][-1]["parameters"],
    }


def tune(chosen: Any) -> None:
    """Candidates by validation; the same as quality, of one seed."""
    compare(chosen, CANDIDATES[chosen.dataset], f"tuning-{chosen.dataset}")


def quality(chosen: Any) -> None:
    """Accuracy over seeds."""
    compare(chosen, VARIANTS[chosen.dataset], f"quality-{chosen.dataset}")


def compare(chosen: Any, variants: dict[str, tuple[str, dict[str, Any]]], name: str) -> None:
    """Train all variants with all seeds, writing the table after each run."""
    need_data("Beauty", chosen.data_path, chosen.raw, "sequences")
    names = [n for n in variants if not chosen.variants or n in chosen.variants]
    out = _out(chosen, name)
    found: dict[str, list[dict[str, Any]]] = {}
    if out.with_suffix(".json").is_file():
        found = json.loads(out.with_suffix(".json").read_text())
    for seed in chosen.seeds:
        for name in names:
            model, options = variants[name]
            options = {**SAME, **options}
            if chosen.dataset == "Beauty":
                options |= BEAUTY
            runs = [r for r in found.get(name, []) if r["seed"] != seed]
            found[name] = [*runs, train(chosen.dataset, model, seed, chosen, **options)]
            _write_quality(chosen, found, out)


def _write_quality(chosen: Any, found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    rows = []
    for name, runs in found.items():
        test = [mean_spread([r["test"][m] for r in runs]) for m in METRICS]
        valid = mean_spread([r["valid"] for r in runs])
        epoch, best = (
            f"{np.median([r[key] for r in runs]):.2f}"
            for key in ("seconds_per_epoch", "seconds_to_best")
        )
        seeds = ", ".join(str(r["seed"]) for r in runs)
        rows.append([name, *test, valid, f"{runs[0]['parameters']:,}", epoch, best, seeds])
    heads = ["model", *(f"test {m}" for m in METRICS), "valid ndcg@10", "parameters"]
    heads += ["s/epoch (median)", "s to best (median)", "seeds"]
    text = (
        f"# {chosen.dataset}: HSTU and SASRec\n\nLeave-one-out, full ranking, the last 50 items of "
        "the history hidden; mean ± sample standard deviation over seeds. Width 64, 2 blocks, 2 "
        "heads, 50 items, for every model.\n\n"
        f"{tabulate(rows, headers=heads, tablefmt='github', disable_numparse=True)}\n\n"
        f"{provenance(chosen.seeds)}\n" + (f"- {chosen.note}\n" if chosen.note else "")
    )
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def citeulike(chosen: Any) -> None:
    """Teacher and student of the RCE-KD paper's HSTU rows, under its protocol."""
    need_data("citeulike", chosen.data_path, chosen.raw, "citeulike")
    paper = {
        # From the authors' published results: R@10, N@10, R@20, N@20.
        "teacher": (0.0463, 0.0291, 0.0613, 0.0333),
        "student": (0.0262, 0.0159, 0.0371, 0.0189),
    }
    out = _out(chosen, "citeulike")
    found: dict[str, list[dict[str, Any]]] = {}
    if out.with_suffix(".json").is_file():
        found = json.loads(out.with_suffix(".json").read_text())
    for seed in chosen.seeds:
        for name in chosen.models:
            recipe = {} if name == "student" else {"recipe": "teacher"}
            run = train("citeulike", "HSTU", seed, chosen, protocol="rcekd", **recipe)
            found[name] = [r for r in found.get(name, []) if r["seed"] != seed] + [run]
            names = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
            rows = []
            for role, runs in found.items():
                values = [mean_spread([r["test"][m] for r in runs]) for m in names]
                epoch = f"{np.median([r['seconds_per_epoch'] for r in runs]):.1f}"
                best = f"{np.median([r['seconds_to_best'] for r in runs]):.0f}"
                epochs = ", ".join(str(r["best_epoch"]) for r in runs)
                seeds = ", ".join(str(r["seed"]) for r in runs)
                size = f"{runs[0]['parameters']:,}"
                rows.append([f"HSTU, {role}", *values, size, epoch, best, epochs, seeds])
                rows.append(["  paper", *(f"{v:.4f}" for v in paper[role])])
            heads = ["model", *names, "parameters", "s/epoch", "s to best", "best epoch", "seeds"]
            text = (
                "# CiteULike: HSTU under the RCE-KD paper's protocol\n\n"
                f"{tabulate(rows, headers=heads, tablefmt='github', disable_numparse=True)}\n\n"
                f"{provenance(chosen.seeds)}\n- protocol: rcekd (ready-made split, one ranking "
                "from the train sequence, all held-out items as targets, validation items stay in "
                "the test ranking, patience 30 on validation NDCG@10)\n"
                + (f"- {chosen.note}\n" if chosen.note else "")
            )
            out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
            out.with_suffix(".md").write_text(text, encoding="utf-8")
            print(text)


def _out(chosen: Any, name: str) -> Path:
    folder = Path(chosen.out or "results/hstu")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


PARTS: dict[str, Callable[[Any], None]] = {
    "citeulike": citeulike,
    "quality": quality,
    "tune": tune,
}


def main() -> None:
    """Run one part."""
    options = parser(__doc__ or "")
    options.add_argument("part", choices=sorted(PARTS))
    options.add_argument("--dataset", choices=sorted(VARIANTS), default="ml-100k")
    options.add_argument("--variants", nargs="+", default=None)
    options.add_argument("--models", nargs="+", default=["student", "teacher"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--raw", default=None, help="raw file to convert, if it is not yet")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    PARTS[chosen.part](chosen)


if __name__ == "__main__":
    main()
