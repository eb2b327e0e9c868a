"""HSTU beside SASRec: quality, speed and scaling; and the RCE-KD paper's HSTU rows on CiteULike.

    python benchmarks/hstu.py tune --dataset=Beauty --seeds 0
    python benchmarks/hstu.py quality --dataset=Beauty --seeds 0 1 2
    python benchmarks/hstu.py speed --sequences=Beauty.txt --rectools_python=venv/bin/python
    python benchmarks/hstu.py prefix --batches=6
    python benchmarks/hstu.py scaling
    python benchmarks/hstu.py citeulike --models student teacher

A quality run that was stopped goes on. Every choice is made on validation; test is measured once,
of the best validation epoch.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
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
ALL = {"train_windows": "all"}


def _hstu(bias: str, dropout: float, tau: float, loss: str) -> tuple[str, dict[str, Any]]:
    """A candidate; ``loss`` is a number of negatives, or full."""
    more = {"loss_type": "full_softmax"} if loss == "full" else {"num_negatives": int(loss)}
    drop = {"hidden_dropout_prob": dropout, "linear_dropout_prob": dropout}
    return "HSTU", {**HSTU, "relative_bias": bias, "temperature": tau, **drop, **more}


def _sasrec(dropout: float) -> tuple[str, dict[str, Any]]:
    drop = {"hidden_dropout_prob": dropout, "attn_dropout_prob": dropout}
    return "SASRec", {**SASREC, "sequence_training": "causal", **drop}


def _variants(dataset: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The models compared, with what was chosen on validation (part ``tune``)."""
    hstu = {**HSTU, "hidden_dropout_prob": 0.5, "linear_dropout_prob": 0.5}
    sasrec = {**SASREC, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    full = {}
    if dataset == "Beauty":
        hstu["num_negatives"] = 256
        full = {"HSTU, no bias, full softmax": _hstu("none", 0.5, 0.05, "full")}
        # Not compared on validation: what papers that train SASRec on this file have.
        sasrec |= {"hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5}
    times = {
        "HSTU, time and position bias, next": {},
        "HSTU, time and position bias, current": {"time_anchor": "current"},
    }
    no_times = {
        "HSTU, position bias": {"relative_bias": "position"},
        "HSTU, no bias": NO_TIME,
    }
    hstus = no_times if dataset == "Beauty" else times | no_times
    causal = {**sasrec, "sequence_training": "causal"}
    every = {}
    if dataset == "ml-100k":
        # The last 50 items of each user, the default, are 40% of the targets there.
        every = {
            "HSTU, time and position bias, next, all targets": ("HSTU", {**hstu, **ALL}),
            "SASRec, causal, all targets": ("SASRec", {**causal, **ALL}),
        }
    return {
        **{name: ("HSTU", {**hstu, **more}) for name, more in hstus.items()},
        **full,
        "SASRec, causal": ("SASRec", causal),
        **every,
        "SASRec, prefix": (
            "SASRec",
            {**sasrec, "train_batch_size": 2048, "stopping_step": 5},
        ),
    }


CANDIDATES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    # What was compared on validation to choose the variants.
    dataset: {
        **{"HSTU {}, dropout {}, tau {}, {}".format(*c): _hstu(*c) for c in candidates},
        **{f"SASRec causal, dropout {drop}": _sasrec(drop) for drop in (0.5, 0.2)},
    }
    for dataset, candidates in {
        "Beauty": [
            ("position", 0.5, 0.05, "256"),
            ("none", 0.5, 0.05, "256"),
            ("position", 0.2, 0.05, "256"),
            ("position", 0.5, 0.1, "256"),
            ("none", 0.5, 0.05, "full"),
        ],
        "ml-100k": [
            ("position", 0.2, 0.05, "128"),
            ("position", 0.5, 0.05, "128"),
            ("position", 0.2, 0.1, "128"),
            ("position", 0.5, 0.1, "128"),
            ("position", 0.2, 0.05, "full"),
            ("position", 0.5, 0.05, "full"),
        ],
    }.items()
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
    # The first epoch also fills caches and buffers.
    training = [line["seconds"]["train"] for line in log[1:] or log]
    return {
        "seed": seed,
        "test": result["test_result"],
        "valid": result["best_valid_score"],
        "best_epoch": result["best_epoch"],
        "seconds_per_epoch": float(np.median(training)),
        "seconds_to_best": sum(seconds[: result["best_epoch"] + 1]),
        "parameters": result["sizes"][-1]["parameters"],
    }


def tune(chosen: Any) -> None:
    """Candidates by validation; the same as quality, of one seed."""
    compare(chosen, CANDIDATES[chosen.dataset], f"tuning-{chosen.dataset}", show_test=False)


def quality(chosen: Any) -> None:
    """Accuracy over seeds."""
    compare(chosen, _variants(chosen.dataset), f"quality-{chosen.dataset}")


def compare(
    chosen: Any,
    variants: dict[str, tuple[str, dict[str, Any]]],
    file: str,
    show_test: bool = True,
) -> None:
    """Train all variants with all seeds, writing the table after each run."""
    need_data("Beauty", chosen.data_path, chosen.raw, "sequences")
    names = [n for n in variants if not chosen.variants or n in chosen.variants]
    out = _out(chosen, file)
    found = _found(out)
    for seed in chosen.seeds:
        for name in names:
            model, options = variants[name]
            options = {**SAME, **options}
            if chosen.dataset == "Beauty":
                options |= BEAUTY
            run = train(chosen.dataset, model, seed, chosen, **options)
            if not show_test:
                del run["test"]
            found[name] = [r for r in found.get(name, []) if r["seed"] != seed] + [run]
            _write_quality(chosen, found, out, show_test)


def _write_quality(
    chosen: Any, found: dict[str, list[dict[str, Any]]], out: Path, show_test: bool
) -> None:
    rows, tested = [], METRICS if show_test else ()
    for name, runs in found.items():
        test = [mean_spread([r["test"][m] for r in runs]) for m in tested]
        valid = mean_spread([r["valid"] for r in runs])
        epoch, best = (
            f"{np.median([r[key] for r in runs]):.2f}"
            for key in ("seconds_per_epoch", "seconds_to_best")
        )
        seeds = ", ".join(str(r["seed"]) for r in runs)
        rows.append([name, *test, valid, f"{runs[0]['parameters']:,}", epoch, best, seeds])
    heads = ["model", *(f"test {m}" for m in tested), "valid ndcg@10", "parameters"]
    heads += ["s/epoch (median)", "s to best (median)", "seeds"]
    text = (
        f"# {chosen.dataset}: HSTU and SASRec\n\nLeave-one-out, full ranking, the last 50 items of "
        "the history hidden; mean ± sample standard deviation over seeds. Width 64, 2 blocks, 2 "
        "heads, 50 items, for every model."
    )
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _write_page(chosen, out.name, text, heads, rows, chosen.seeds)


def citeulike(chosen: Any) -> None:
    """Teacher and student of the RCE-KD paper's HSTU rows, under its protocol."""
    need_data("citeulike", chosen.data_path, chosen.raw, "citeulike")
    paper = {
        # From the authors' published results: R@10, N@10, R@20, N@20.
        "teacher": (0.0463, 0.0291, 0.0613, 0.0333),
        "student": (0.0262, 0.0159, 0.0371, 0.0189),
    }
    out = _out(chosen, "citeulike")
    found = _found(out)
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
            protocol = (
                "- protocol: rcekd (ready-made split, one ranking from the train sequence, all "
                "held-out items as targets, validation items stay in the test ranking, patience 30 "
                "on validation NDCG@10)\n"
            )
            out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
            text = "# CiteULike: HSTU under the RCE-KD paper's protocol"
            _write_page(chosen, out.name, text, heads, rows, chosen.seeds, protocol)


# -- speed -------------------------------------------------------------------------------------


def one(chosen: Any) -> None:
    """One model in a process of its own, for its memory; prints what it cost as JSON."""
    options = json.loads(chosen.options)
    with tempfile.TemporaryDirectory() as folder:
        chosen.checkpoint_dir = folder
        found = train(chosen.dataset, chosen.model, chosen.seeds[0], chosen, **options)
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(chosen.out).write_text(json.dumps(found), encoding="utf-8")


def _process(command: list[str]) -> dict[str, Any]:
    """What a script writes to the file after its last argument, ``--out``."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        print("+", " ".join(command), flush=True)
        subprocess.run([*command, "--out", str(target)], check=True, capture_output=True)
        return json.loads(target.read_text())


def _ours(chosen: Any, dataset: str, model: str, **options: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "one", f"--dataset={dataset}", f"--model={model}"]
    command += [f"--data_path={chosen.data_path}", f"--threads={chosen.threads}", "--seeds", "0"]
    return _process([*command, f"--options={json.dumps({**SAME, **options})}"])


def _recbole(chosen: Any, *words: str) -> dict[str, Any]:
    """RecBole's own SASRec, by its own trainer."""
    command = [sys.executable, str(PEERS / "recbole_sasrec.py"), f"--batches={chosen.batches}"]
    sizes = ["--hidden_size=64", "--inner_size=256"]
    return _process([*command, f"--threads={chosen.threads}", *sizes, *words])


CAUSAL = {**SASREC, "sequence_training": "causal"}


def speed(chosen: Any) -> None:
    """Seconds of an epoch and peak memory, side by side in one run on an idle machine."""
    parts = {"ml-100k": _speed_ml100k, "Beauty": _speed_beauty}
    rows = [row for name in chosen.datasets for row in parts[name](chosen)]
    heads = ["data", "model", "s/epoch", "ratio", "s to best", "peak MiB", "test ndcg@10"]
    text = (
        "# Speed of HSTU and SASRec\n\nOne run, one model after the other. Width 64, 2 blocks, 2 "
        "heads, 50 items; HSTU 128 users a batch, on Beauty 256 negatives and no relative bias; "
        "RecBole's SASRec 2048 prefix rows a batch, its epoch extrapolated from "
        f"{chosen.batches} batches. Seconds of an epoch are the median of the training epochs, "
        "without evaluation; seconds to the best validation epoch include it. The ratio is against "
        "the first row of the data set. On ml-100k ours trains to the end, with early stopping; on "
        f"Beauty both for {chosen.epochs} epochs. An epoch of RecBole learns every train item once "
        "but the first of each user, and so does one of a row with all targets "
        "(`train_windows: all`); the others learn the last 50 of each user, the default."
    )
    _write_page(chosen, "speed", text, heads, rows, [0])


def _speed_ml100k(chosen: Any) -> list[list[Any]]:
    rows: list[list[Any]] = []
    first = None
    for name, more in (("", []), (", no anomaly detection", ["--no_anomaly_detection"])):
        found = _recbole(chosen, *more)
        first = first or found["seconds_per_epoch"]
        rows.append(_row("ml-100k", f"SASRec, RecBole{name}", found, first))
    for name, model, options in (
        ("SASRec, causal, all targets", "SASRec", {**CAUSAL, **ALL}),
        ("SASRec, causal", "SASRec", CAUSAL),
        ("HSTU, time and position bias, all targets", "HSTU", {**HSTU, **ALL}),
        ("HSTU, time and position bias", "HSTU", HSTU),
        ("HSTU, no bias", "HSTU", {**HSTU, **NO_TIME}),
    ):
        found = _ours(chosen, "ml-100k", model, **options)
        rows.append(_row("ml-100k", name, found, first))
    return rows


def _speed_beauty(chosen: Any) -> list[list[Any]]:
    rows: list[list[Any]] = []
    equal = {**HSTU, **NO_TIME, "num_negatives": 256, **BEAUTY, "epochs": chosen.epochs}
    peer = None
    if chosen.rectools_python:
        command = [chosen.rectools_python, str(PEERS / "rectools_hstu.py")]
        command += [f"--sequences={chosen.sequences}", f"--epochs={chosen.epochs}"]
        peer = _process([*command, f"--threads={chosen.threads}"])
        peer["seconds_per_epoch"] = float(np.median(peer["seconds_per_epoch"]))
        rows.append(_row("Beauty", "HSTU, RecTools", peer, peer["seconds_per_epoch"]))
    found = _ours(chosen, "Beauty", "HSTU", **equal)
    against = peer["seconds_per_epoch"] if peer else found["seconds_per_epoch"]
    rows.append(_row("Beauty", f"HSTU, no bias, {chosen.epochs} epochs", found, against))
    found = _ours(chosen, "Beauty", "SASRec", **CAUSAL, **BEAUTY, epochs=chosen.epochs)
    rows.append(_row("Beauty", f"SASRec, causal, {chosen.epochs} epochs", found, against))
    return rows


def prefix(chosen: Any) -> None:
    """SASRec on the same prefix rows, as RecBole encodes them and as this package does."""
    if "Beauty" in chosen.datasets:
        need_data("Beauty", chosen.data_path, chosen.raw, "sequences")
    ours = {**SASREC, "sequence_training": "prefix", "train_batch_size": 2048, "epochs": 2}
    rows: list[list[Any]] = []
    for dataset in chosen.datasets:
        more = BEAUTY if dataset == "Beauty" else {}
        place = [] if dataset == "ml-100k" else [f"--data_path={chosen.data_path}"]
        same = ("--no_anomaly_detection", "--seed=0", f"--dataset={dataset}")
        theirs = _recbole(chosen, *same, *place)
        against = theirs["seconds_per_epoch"]
        found = _ours(chosen, dataset, "SASRec", **ours, **more)
        for name, costs in (("RecBole", theirs), ("ours", found)):
            rows.append(_row(dataset, name, costs, against)[:4])
    heads = ["data", "SASRec", "s/epoch", "ratio"]
    text = (
        "# SASRec on prefix rows\n\nOne run, one after the other: width 64, inner width 256, 2 "
        "blocks, 2 heads, 50 items, 2048 rows a batch, full cross-entropy. RecBole pads every row "
        f"to 50 items; its epoch is extrapolated from {chosen.batches} batches, without anomaly "
        "detection. Ours encodes rows of similar length together, without their padding, a part of "
        "a batch at a time; it is the second of two epochs, without evaluation."
    )
    _write_page(chosen, "prefix", text, heads, rows, [0])


def _row(data: str, name: str, found: dict[str, Any], against: float) -> list[Any]:
    # RecTools' script writes its own names.
    ndcg = {k.lower(): v for k, v in found.get("test", {}).items()}.get("ndcg@10")
    best = found.get("seconds_to_best")
    return [
        data,
        name,
        f"{found['seconds_per_epoch']:.2f}",
        f"{against / found['seconds_per_epoch']:.1f}x",
        "-" if best is None else f"{best:.0f}",
        f"{found['peak_rss_mib']:.0f}",
        "-" if ndcg is None else f"{ndcg:.4f}",
    ]


def scaling(chosen: Any) -> None:
    """Seconds of an epoch against history length and against users, on random data."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chosen.data_path = folder
        for users, length in ((500, 100), (500, 200), (500, 400)):
            rows.append(_scaled(chosen, folder, users, length))
        for users in (500, 2000, 8000):
            rows.append(_scaled(chosen, folder, users, 50))
    heads = ["users", "items each", "targets", "s/epoch", "us/target", "peak MiB"]
    text = (
        "# Cost of an HSTU epoch\n\nRandom data, 5,000 items, every user with the number of train "
        "items in the table, all of them read. Width 64, 2 blocks, 2 heads, time and position "
        "bias, 128 negatives, 128 users a batch; median of the epochs after the first.\n\n"
        "A target costs its projections and its negatives, which do not depend on the length, and "
        "its attention, which grows with it: `us/target = a + b * length`. Users cost the same "
        "each, so an epoch grows with their number; the data with the interactions."
    )
    _write_page(chosen, "scaling", text, heads, rows, [0])


def _scaled(chosen: Any, folder: str, users: int, length: int) -> list[Any]:
    """One row of the table: a random data set of that size, some epochs of it."""
    name, items, epochs = f"u{users}l{length}", 5000, 5
    path = Path(folder) / name / f"{name}.inter"
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    # One more than the table says to predict, and two to hold out.
    count = users * (length + 3)
    table = np.empty((count, 3), dtype=np.int64)
    table[:, 0] = np.arange(users).repeat(length + 3)
    table[:, 1] = rng.integers(items, size=count)
    table[:, 2] = 10**9 + rng.integers(10**8, size=count)
    head = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt(path, table, fmt="%d", delimiter="\t", header=head, comments="")
    options = {"MAX_ITEM_LIST_LENGTH": length, "epochs": epochs, "eval_step": epochs}
    found = _ours(chosen, name, "HSTU", **HSTU, **BEAUTY, **options)
    targets, seconds = users * length, found["seconds_per_epoch"]
    per_target = f"{seconds / targets * 1e6:.1f}"
    return [users, length, targets, f"{seconds:.2f}", per_target, f"{found['peak_rss_mib']:.0f}"]


def _write_page(
    chosen: Any,
    name: str,
    text: str,
    heads: list[str],
    rows: list[list[Any]],
    seeds: list[int],
    more: str = "",
) -> None:
    """Write and print a result: what it is, its table, where it comes from."""
    table = tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)
    note = f"- {chosen.note}\n" if chosen.note else ""
    page = f"{text}\n\n{table}\n\n{provenance(seeds)}\n{more}{note}"
    _out(chosen, f"{name}.md").write_text(page, encoding="utf-8")
    print(page)


def _found(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The runs of earlier calls, by model."""
    path = out.with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else {}


def _out(chosen: Any, name: str) -> Path:
    folder = Path(chosen.out or "results/hstu")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


PARTS: dict[str, Callable[[Any], None]] = {
    "citeulike": citeulike,
    "one": one,
    "prefix": prefix,
    "quality": quality,
    "scaling": scaling,
    "speed": speed,
    "tune": tune,
}


def main() -> None:
    """Run one part."""
    options = parser(__doc__ or "")
    options.add_argument("part", choices=sorted(PARTS))
    options.add_argument("--dataset", default="ml-100k")
    datasets = ("ml-100k", "Beauty")
    options.add_argument("--datasets", nargs="+", choices=datasets, default=datasets)
    options.add_argument("--model", default="HSTU", help="of the part `one`")
    options.add_argument("--options", default="{}", help="of the part `one`, as JSON")
    options.add_argument("--batches", type=int, default=6, help="of RecBole's epoch, timed")
    options.add_argument("--epochs", type=int, default=3, help="on Beauty, of the part `speed`")
    options.add_argument("--sequences", default=None, help="Beauty.txt, for RecTools")
    options.add_argument("--rectools_python", default=None, help="of an environment with it")
    options.add_argument("--variants", nargs="+", default=None)
    options.add_argument("--models", nargs="+", default=["student", "teacher"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--raw", default=None, help="raw file to convert, if it is not yet")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    PARTS[chosen.part](chosen)


if __name__ == "__main__":
    main()
