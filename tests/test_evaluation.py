"""Evaluation: what is hidden, what a batch is, and that the numbers are RecBole's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.utils import data_preparation
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import Collector
from recbole.trainer import Trainer
from recbole.utils import init_seed
from tiny import config_for, part_pairs

from recbole_kd import compat, run_recbole_kd
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.evaluation import TopKCollector
from recbole_kd.loaders import make_loaders
from recbole_kd.options import Sources
from recbole_kd.teachers import ranking
from recbole_kd.trainer import RunTrainer
from recbole_kd.training import build_plain

ALL_METRICS = ["Recall", "NDCG", "MRR", "Hit", "Precision", "MAP", "ShannonEntropy"]
CATALOGUE_METRICS = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage"]


def evaluate(config: KDConfig, split: Split, phase: int = 2) -> dict[str, float]:
    """Metrics of an untrained model, the same for every call."""
    trainer = RunTrainer(config, build_plain(config, split))
    return dict(trainer.evaluate(make_loaders(config, split)[phase], load_best_model=False))


# -- what is hidden ----------------------------------------------------------------------------


def hidden(loader: Any) -> dict[int, set[int]]:
    """Items set to -inf for each user, as the loader hands them to the trainer."""
    found: dict[int, set[int]] = {}
    for users, (rows, items), _, _ in loader:
        ids = users["user_id"].tolist()
        found.update({u: set() for u in ids})
        for row, item in zip(rows.tolist(), items.tolist(), strict=True):
            found[ids[row]].add(item)
    return found


def items_by_user(split: Split, *parts: int) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {u: set() for u in range(len(split.tokens.users))}
    for part in parts:
        feat = split.parts[part].inter_feat
        for user, item in zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True):
            found[user].add(item)
    return found


@pytest.mark.parametrize("student", ["BPR", "SASRec"])
def test_the_line_of_results_names_sampled_candidates(root: Path, student: str) -> None:
    """The same weights score several times as high among 50 items as among all."""
    config = config_for(root, student=student)
    assert "sampled" not in ranking(config)
    args = {**config["eval_args"], "mode": "uni50"}
    sampled = ranking(config_for(root, student=student, eval_args=args))
    assert sampled == f"{ranking(config)}, ranked among sampled items (eval_args.mode uni50)"


@pytest.mark.parametrize(("policy", "parts"), [("all", (0, 1)), ("train", (0,))])
def test_hidden_items(root: Path, split: Split, policy: str, parts: tuple[int, ...]) -> None:
    _, valid, test = make_loaders(config_for(root, eval_history=policy), split)
    wanted, positive = items_by_user(split, *parts), items_by_user(split, 2)
    assert hidden(test) == {u: wanted[u] - positive[u] for u in hidden(test)}
    train, positive = items_by_user(split, 0), items_by_user(split, 1)
    assert hidden(valid) == {u: train[u] - positive[u] for u in hidden(valid)}
    tested = {split.tokens.users[u] for u in hidden(test)}
    assert tested == {u for u, _ in part_pairs(split, 2)}


def brute_force(split: Split, model: Any, policy: str, phase: int, k: int) -> dict[str, float]:
    """Recall and NDCG of every user, with loops."""
    shown_before = {"all": tuple(range(phase)), "train": (0,)}[policy]
    known, positive = items_by_user(split, *shown_before), items_by_user(split, phase)
    recalls, ndcgs = [], []
    for user, relevant in positive.items():
        if not relevant:
            continue
        scores = model.item_embedding.weight @ model.user_embedding.weight[user]
        ranking = [
            i
            for i in scores.argsort(descending=True).tolist()
            if i and (i in relevant or i not in known[user])
        ][:k]
        gains = [1 / torch.tensor(n + 2.0).log2().item() for n in range(k)]
        hits = [g for g, i in zip(gains, ranking, strict=True) if i in relevant]
        recalls.append(len(hits) / len(relevant))
        ndcgs.append(sum(hits) / sum(gains[: len(relevant)]))
    return {
        f"recall@{k}": sum(recalls) / len(recalls),
        f"ndcg@{k}": sum(ndcgs) / len(ndcgs),
    }


def test_metrics_by_brute_force_and_validation_is_untouched(root: Path, split: Split) -> None:
    found = {}
    for policy in ("all", "train"):
        config = config_for(root, eval_history=policy)
        model = build_plain(config, split)
        for phase in (1, 2):
            result = found[policy, phase] = evaluate(config, split, phase)
            wanted = brute_force(split, model, policy, phase, 10)
            assert {k: result[k] for k in wanted} == pytest.approx(wanted, abs=1e-6)
    assert found["all", 1] == found["train", 1]
    assert found["all", 2] != found["train", 2]


# -- batches -----------------------------------------------------------------------------------


def test_batches_count_users_and_change_nothing(root: Path, split: Split) -> None:
    results = []
    for size in (1, 7, 1000):
        config = config_for(root, eval_user_batch_size=size)
        loader = make_loaders(config, split)[2]
        batches = [len(users) for users, *_ in loader]
        n_users = len(loader.uid_list)
        assert batches[:-1] == [size] * (len(batches) - 1)
        assert (max(batches), sum(batches)) == (min(size, n_users), n_users)
        results.append(evaluate(config, split))
    assert results[0] == results[1] == results[2]


def test_batches_of_a_sequence_model_count_rows(root: Path) -> None:
    config = config_for(root, student="SASRec", eval_user_batch_size=7)
    loader = make_loaders(config, load_split(config))[2]
    assert [len(batch[0]) for batch in loader][:2] == [7, 7]


def test_batches_fit_the_memory_budget(root: Path, split: Split) -> None:
    budget = 16 * split.dataset.item_num * 3 / 2**30
    config = config_for(root, memory_budget_gb=budget, eval_user_batch_size=1000)
    assert len(next(iter(make_loaders(config, split)[1]))[0]) == 3


# -- the collector -----------------------------------------------------------------------------


def collect(cls: type[Collector], config: KDConfig, batches: list[Any]) -> Any:
    collector = cls(config)
    for scores, rows, items in batches:
        collector.eval_batch_collect(scores.clone(), None, rows, items)
    return collector.get_data_struct()


def random_batches(seed: int) -> list[Any]:
    """Scores without ties; some users have more positives than the cut-off, pairs repeat."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in (5, 1, 9):
        scores = torch.stack([torch.randperm(60, generator=generator) for _ in range(size)]).float()
        hide = torch.rand(scores.shape, generator=generator) < 0.2
        scores.masked_fill_(hide, -torch.inf)[:, 0] = -torch.inf
        counts = torch.randint(1, 40, (size,), generator=generator)
        rows = torch.arange(size).repeat_interleave(counts)
        items = torch.cat([torch.randperm(59, generator=generator)[: int(c)] + 1 for c in counts])
        again = torch.randint(0, len(rows), (4,), generator=generator)
        shuffled = torch.randperm(len(rows) + 4, generator=generator)
        rows, items = torch.cat([rows, rows[again]]), torch.cat([items, items[again]])
        batches.append((scores, rows[shuffled], items[shuffled]))
    return batches


@pytest.mark.parametrize("metrics", [ALL_METRICS, ["Recall"], ["NDCG", "NDCG"], ["ShannonEntropy"]])
def test_collector_equals_recboles(root: Path, metrics: list[str]) -> None:
    config = config_for(root, metrics=metrics, topk=[3, 10], valid_metric=f"{metrics[0]}@3")
    for seed in range(3):
        batches = random_batches(seed)
        ours, theirs = (collect(c, config, batches) for c in (TopKCollector, Collector))
        for name in ("rec.topk", "rec.items"):
            assert (name in ours) == (name in theirs)
            if name in ours:
                assert torch.equal(ours.get(name), theirs.get(name))
        evaluator = Evaluator(config)
        assert evaluator.evaluate(ours) == evaluator.evaluate(theirs)


def test_collector_leaves_other_metrics_to_recbole(root: Path) -> None:
    config = config_for(root, metrics=["GAUC", "NDCG"], topk=[3], valid_metric="GAUC")
    batches = [(s.nan_to_num(neginf=-1e9), r, i) for s, r, i in random_batches(1)]
    ours, theirs = (collect(c, config, batches) for c in (TopKCollector, Collector))
    assert torch.equal(ours.get("rec.meanrank"), theirs.get("rec.meanrank"))
    assert torch.equal(ours.get("rec.topk"), theirs.get("rec.topk"))


def test_metrics_of_the_catalogue(root: Path, split: Split) -> None:
    """RecBole's collector cannot hand them their counts."""
    config = config_for(root, metrics=CATALOGUE_METRICS, topk=[4], valid_metric="ItemCoverage@4")
    model, loaders = build_plain(config, split), make_loaders(config, split)
    trainer = RunTrainer(config, model)
    trainer.eval_collector.data_collect(loaders[0])
    results = [trainer.evaluate(loaders[2], load_best_model=False) for _ in range(2)]
    assert results[0] == results[1]
    known, shown = items_by_user(split, 0, 1), []
    for user, relevant in items_by_user(split, 2).items():
        if relevant:
            scores = model.item_embedding.weight @ model.user_embedding.weight[user]
            order = scores.argsort(descending=True).tolist()
            shown.append([i for i in order if i and (i in relevant or i not in known[user])][:4])
    flat = torch.tensor(shown).flatten()
    popularity = split.history.items.bincount()[flat].float().mean()
    assert results[0]["itemcoverage@4"] == pytest.approx(len(flat.unique()) / 151, abs=1e-6)
    assert results[0]["averagepopularity@4"] == pytest.approx(popularity.item(), abs=1e-5)
    with compat.no_default_folders():
        stock = Trainer(config, model)
    stock.eval_collector.data_collect(loaders[0])
    with pytest.raises(AttributeError, match="cpu"):
        stock.evaluate(loaders[2], load_best_model=False)


# -- RecBole's whole evaluation ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"eval_args": {"split": {"LS": "valid_and_test"}}}])
def test_the_whole_evaluation_is_recboles_on_ml100k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Stock loaders, collector and trainer on their own split; ours on ours."""
    monkeypatch.chdir(tmp_path)
    given = {"metrics": ALL_METRICS, "seed": 11, "split_seed": 11, "eval_batch_size": 10**6}
    sources = Sources.collect(
        "Scratch", "ml-100k", "BPR", options={**given, **options, "valid_metric": "MRR@10"}
    )
    config = KDConfig(sources)
    ours = load_split(config)
    model = build_plain(config, ours)
    with torch.no_grad():  # far from ties, unlike an untrained model
        model.item_embedding.weight.mul_(30)
    loaders = make_loaders(config, ours)
    trainer = RunTrainer(config, model)
    trainer.eval_collector.data_collect(loaders[0])

    from recbole.data import create_dataset

    init_seed(config["seed"], config["reproducibility"])
    theirs = data_preparation(config, create_dataset(config))
    assert type(theirs[2]) is FullSortEvalDataLoader
    with compat.no_default_folders():
        stock = Trainer(config, model)
    stock.eval_collector.data_collect(theirs[0])
    assert type(stock.eval_collector) is Collector
    for phase in (1, 2):
        wanted = stock.evaluate(theirs[phase], load_best_model=False)
        found = trainer.evaluate(loaders[phase], load_best_model=False)
        assert len(wanted) == len(ALL_METRICS) * 2
        assert dict(found) == dict(wanted)


def test_two_runs_with_one_seed_agree(root: Path) -> None:
    folders = {"data_path": str(root), "checkpoint_dir": str(root / "saved")}
    results = [
        run_recbole_kd(
            "Scratch",
            "tiny",
            config_dict={"epochs": 2, "seed": seed, "state": "WARNING", **folders},
            saved=False,
            student="BPR",
            command_line={"show_progress": False},
        )
        for seed in (3, 3, 4)
    ]
    numbers = [(r["best_valid_score"], r["best_valid_result"], r["test_result"]) for r in results]
    assert numbers[0] == numbers[1] != numbers[2]
