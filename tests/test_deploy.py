"""Trained models out of their checkpoints, and into plain RecBole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from recbole.model.general_recommender.bpr import BPR
from recbole.utils import get_model

import recbole_kd
from recbole_kd import checkpoint, deploy, training
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.deploy import LoadedModel, SavedDataset, export_recbole, load_model
from recbole_kd.errors import KDError
from recbole_kd.options import Sources
from recbole_kd.quick_start import run_recbole_kd
from recbole_kd.scoring import DenseScorer, FactorScorer

NAMES = ("BPR", "LightGCN", "MultiVAE", "SASRec", "NeuMF", "EASE")
EXPORTED = ("BPR", "LightGCN", "MultiVAE", "SASRec")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of an epoch of every model; their checkpoints lie in a folder each."""
    folder = tmp_path_factory.mktemp("saved")
    return {name: tiny.run(name, folder) for name in NAMES}


def evaluate(loaded: LoadedModel, name: str) -> dict[str, float]:
    """Recall and NDCG at 10 on the test part, written out, for models of a random split."""
    part = tiny.split_for(name)
    hidden: dict[int, set[int]] = {}
    relevant: dict[int, set[int]] = {}
    for target, data in (
        (hidden, part.parts[0]),
        (hidden, part.parts[1]),
        (relevant, part.parts[2]),
    ):
        feat = data.inter_feat
        for user, item in zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True):
            target.setdefault(user, set()).add(item)
    recalls, ndcgs = [], []
    for user, wanted in relevant.items():
        users = torch.tensor([user])
        with torch.no_grad():
            scores = loaded.scorer.score_all(loaded.scorer.encode(users))[0].tolist()
        allowed = [i for i in range(1, len(scores)) if i not in hidden[user]]
        top = sorted(allowed, key=lambda i, s=scores: -s[i])[:10]
        discount = 1 / torch.arange(2, 12).float().log2()
        gains = torch.tensor([float(item in wanted) for item in top])
        recalls.append(gains.sum().item() / len(wanted))
        ndcgs.append(float((gains * discount).sum() / discount[: min(10, len(wanted))].sum()))
    return {
        "recall@10": sum(recalls) / len(recalls),
        "ndcg@10": sum(ndcgs) / len(ndcgs),
    }


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "MultiVAE", "NeuMF", "EASE"])
def test_a_loaded_model_scores_as_it_did_in_the_run(name: str, runs: dict[str, Any]) -> None:
    found = evaluate(load_model(runs[name]["checkpoints"]["student"]), name)
    for metric, value in found.items():
        assert runs[name]["test_result"][metric] == pytest.approx(value, abs=2e-6)
    assert found["recall@10"] > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_the_one_that_was_trained(name: str, tmp_path: Path) -> None:
    part = tiny.split_for(name)
    trained = training.train(tiny.config(name), part, tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    users = tiny.users_of(part)
    with torch.no_grad():
        a, b = (s.score_all(s.encode(users)) for s in (trained.scorer, loaded.scorer))
    assert a.std() > 1e-4
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_with_and_without_the_data_set(name: str, runs: dict[str, Any]) -> None:
    path = Path(runs[name]["checkpoints"]["student"])
    part = tiny.split_for(name)
    alone, by_folder = load_model(path), load_model(path.parent)
    with_data = load_model(path, dataset=part.train)
    users = tiny.users_of(part)
    with torch.no_grad():
        scores = [m.scorer.score_all(m.scorer.encode(users)) for m in (alone, by_folder, with_data)]
    assert scores[0].std() > 1e-4
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-5, atol=1e-6)
    assert not alone.model.training
    assert isinstance(
        alone.scorer, DenseScorer if name in ("MultiVAE", "NeuMF", "EASE") else FactorScorer
    )
    assert alone.tokens == part.tokens
    assert alone.split == part.fingerprints
    assert torch.equal(alone.history.items, part.history.items)
    assert torch.equal(alone.history.offsets, part.history.offsets)


def test_another_data_set_is_refused(runs: dict[str, Any]) -> None:
    path = runs["LightGCN"]["checkpoints"]["student"]
    for data, seed in (("permuted", 2020), ("tiny", 1)):
        with pytest.raises(KDError, match="trained on other users, items or train interactions"):
            load_model(path, dataset=tiny.split("BPR", data, seed).train)
    whole = tiny.split("BPR").dataset
    with pytest.raises(KDError, match="trained on other users, items or train interactions"):
        load_model(path, dataset=whole)


@pytest.mark.parametrize("name", ["LightGCN", "SASRec", "MultiVAE"])
def test_the_saved_data_set_answers_as_recboles(name: str) -> None:
    part, config = tiny.split_for(name), tiny.config(name)
    saved = SavedDataset(config.resolved(), part.tokens, part.history)
    assert (saved.user_num, saved.item_num) == (part.train.user_num, part.train.item_num)
    assert saved.num("item_id") == part.train.num("item_id")
    for form in ("coo", "csr"):
        ours, theirs = saved.inter_matrix(form=form), part.train.inter_matrix(form=form)
        assert ours.format == theirs.format == form
        assert (ours != theirs).nnz == 0
    if name == "SASRec":
        return
    for ours, theirs in zip(
        saved.history_item_matrix(), part.train.history_item_matrix(), strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.sort().values, theirs.sort().values)


def test_what_a_checkpoint_does_not_hold_is_said() -> None:
    part = tiny.split("BPR")
    saved = SavedDataset(tiny.config("BPR").resolved(), part.tokens, part.history)
    for ask in (
        lambda: saved.kg_graph(),
        lambda: saved.inter_matrix(form="csr", value_field="rating"),
        lambda: saved.history_item_matrix(value_field="rating"),
    ):
        with pytest.raises(KDError, match="open it with load_model"):
            ask()


# -- recommend -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SASRec", "NeuMF"])
def test_recommend(name: str, runs: dict[str, Any]) -> None:
    loaded = load_model(runs[name]["checkpoints"]["student"])
    users = loaded.tokens.users[5:0:-2]
    seen: dict[str, set[str]] = {}
    for user, item in zip(*(t.tolist() for t in loaded.history.pairs()), strict=True):
        seen.setdefault(loaded.tokens.users[user], set()).add(loaded.tokens.items[item])
    number = {token: i for i, token in enumerate(loaded.tokens.items)}
    filtered, plain = loaded.recommend(users, 7), loaded.recommend(users, 7, filter_history=False)
    assert filtered != plain
    for user, with_filter, without in zip(users, filtered, plain, strict=True):
        row = torch.tensor([loaded.tokens.users.index(user)])
        with torch.no_grad():
            scores = loaded.scorer.score_all(loaded.scorer.encode(row))[0]
        for found, hidden in ((with_filter, seen[user]), (without, set())):
            assert len(found) == 7
            allowed = [t for t in loaded.tokens.items[1:] if t not in hidden]
            best = sorted((scores[number[t]].item() for t in allowed), reverse=True)[:7]
            assert not set(found) & (hidden | {"[PAD]"})
            assert [scores[number[t]].item() for t in found] == pytest.approx(best, abs=1e-6)


def test_recommend_more_than_there_is(runs: dict[str, Any]) -> None:
    loaded = load_model(runs["BPR"]["checkpoints"]["student"])
    n_items = len(loaded.tokens.items) - 1
    (user,) = loaded.tokens.users[1:2]
    (everything,) = loaded.recommend([user], n_items)
    assert len(everything) == n_items - int(loaded.history.counts[1])
    (unfiltered,) = loaded.recommend([user], n_items, filter_history=False)
    assert sorted(unfiltered) == sorted(loaded.tokens.items[1:])
    for k in (0, -1, n_items + 1):
        with pytest.raises(KDError, match=rf"k={k}: allowed are 1 to {n_items} items"):
            loaded.recommend([user], k)
    assert loaded.recommend([]) == []


def test_recommend_to_unknown_users(runs: dict[str, Any]) -> None:
    loaded = load_model(runs["BPR"]["checkpoints"]["student"])
    user = loaded.tokens.users[1]
    with pytest.raises(KDError, match="2 unknown users: nobody, no one"):
        loaded.recommend([user, "nobody", "no one"])
    with pytest.raises(KDError, match="1 unknown users"):
        loaded.recommend(["[PAD]"])
    assert loaded.recommend(user, 3) == loaded.recommend([user], 3), "one text is one user"


# -- what is in a checkpoint ---------------------------------------------------------------------


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


@pytest.mark.parametrize("method", ["CE", "RCEKD"])
def test_a_distilled_student_is_shipped_without_its_teacher(method: str, tmp_path: Path) -> None:
    settings = {
        **tiny.OPTIONS,
        "data_path": str(tiny.data_path()),
        "checkpoint_dir": str(tmp_path),
        "scratch": False,
        "student": {"embedding_size": 8},
        "teacher": {"embedding_size": 200},
        **({"ce_K": 10} if method == "CE" else {"rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 20}),
    }
    result = run_recbole_kd(
        method, tiny.dataset(), config_dict=settings, student="BPR", teacher="BPR"
    )
    path, teacher = (Path(result["checkpoints"][role]) for role in ("student", "teacher"))
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    alone = get_model("BPR")(tiny.config("BPR"), tiny.split("BPR").train).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in alone.items()}
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in state.values())
    assert plain({k: v for k, v in content.items() if k != "state_dict"})
    assert content["teacher"]["model"] == "BPR"
    assert path.stat().st_size < teacher.stat().st_size - 180 * 192 * 4
    loaded = load_model(path)
    assert type(loaded.model) is BPR
    found = evaluate(loaded, "BPR")["ndcg@10"]
    assert result["test_result"]["ndcg@10"] == pytest.approx(found, abs=2e-6)


def test_a_folder_without_a_best_model_and_a_last_one(tmp_path: Path) -> None:
    with pytest.raises(KDError, match=r"best\.pt: there is no such file"):
        load_model(tmp_path)
    tiny.run("BPR", tmp_path)
    (last,) = tmp_path.rglob("last.pt")
    for open_ in (load_model, lambda path: export_recbole(path, tmp_path / "x.pth")):
        with pytest.raises(KDError, match=r"is it a last\.pt"):
            open_(last)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "BRP"}, "there is no such model"),
        ({"model": "collections:OrderedDict"}, "no RecBole model"),
        ({"model": "KD_DAGFM"}, "evaluates text"),
        ({"model": None}, "there is no such model"),
        ({"model": "NeuMF"}, "weights do not fit NeuMF"),
        ({"config": [1]}, "another form"),
        ({"tokens": {"users": []}}, "another form"),
        ({"history": {"items": torch.zeros(1), "other": 1}}, "another form"),
        ({"state_dict": {"user_embedding.weight": torch.ones(2, 2)}}, "weights do not fit BPR"),
    ],
)
def test_entries_that_do_not_fit(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    content = checkpoint.load(tiny.save("BPR", tmp_path / "good.pt"))
    if change.get("model") == "NeuMF":
        change = {**change, "config": tiny.config("NeuMF").resolved()}
    checkpoint.save(tmp_path / "bad.pt", {**content, **change})
    with pytest.raises(KDError, match=reason) as refused:
        load_model(tmp_path / "bad.pt")
    assert "\n" not in str(refused.value)
    assert "bad.pt" in str(refused.value)


# -- export --------------------------------------------------------------------------------------

PLAIN_RECBOLE = """
    import json, sys, types
    import numpy as np, torch

    for name, value in {"bool": np.bool_, "int": np.int64, "float": np.float64, "long": np.int64,
                        "complex": np.complex128, "object": np.object_, "str": np.str_,
                        "bool8": np.bool_, "float_": np.float64, "complex_": np.complex128,
                        "unicode_": np.str_}.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    from scipy.sparse import dok_matrix
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)
    load = torch.load
    torch.load = lambda *a, **k: load(*a, **{"weights_only": False, **k})
    ray = types.ModuleType("ray")
    ray.tune = types.ModuleType("ray.tune")
    sys.modules.update({"ray": ray, "ray.tune": ray.tune})

    from recbole.quick_start import load_data_and_model
    from recbole.utils import get_trainer

    results = {}
    for path in sys.argv[1:]:
        config, model, dataset, train, valid, test = load_data_and_model(path)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        result = trainer.evaluate(test, load_best_model=False)
        results[config["model"]] = {
            "test": {k: float(v) for k, v in result.items()},
            "class": f"{type(model).__module__}.{type(model).__name__}",
            "train": len(train.dataset),
            "sum": sum(float(v.double().abs().sum()) for v in model.state_dict().values()),
        }
    assert not [name for name in sys.modules if name.startswith("recbole_kd")]
    print("RESULT" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def exported(runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What RecBole alone, in another process, makes of our exports."""
    folder = tmp_path_factory.mktemp("exported")
    paths = []
    for name in EXPORTED:
        target = folder / "new" / f"{name}.pth"
        assert export_recbole(runs[name]["checkpoints"]["student"], target) == target
        paths.append(str(target))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLAIN_RECBOLE), *paths],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULT")]
    return {"folder": folder / "new", **json.loads(line.removeprefix("RESULT"))}


@pytest.mark.parametrize("name", EXPORTED)
def test_recbole_alone_opens_our_export_and_finds_the_same_results(
    name: str, exported: dict[str, Any], runs: dict[str, Any]
) -> None:
    found, ours = exported[name], runs[name]
    assert found["class"] == f"{get_model(name).__module__}.{name}"
    assert found["test"] == ours["test_result"]
    assert any(value > 0 for value in found["test"].values())
    assert found["train"] == len(tiny.split_for(name).train)
    state = checkpoint.load(ours["checkpoints"]["student"])["state_dict"]
    assert found["sum"] == pytest.approx(sum(float(v.double().abs().sum()) for v in state.values()))


@pytest.mark.parametrize("name", EXPORTED)
def test_our_export_opens_here_too(
    name: str, exported: dict[str, Any], runs: dict[str, Any], tmp_path: Path
) -> None:
    path = exported["folder"] / f"{name}.pth"
    loaded, ours = load_model(path), load_model(runs[name]["checkpoints"]["student"])
    users = tiny.users_of(tiny.split_for(name))
    with torch.no_grad():
        a, b = (m.scorer.score_all(m.scorer.encode(users)) for m in (loaded, ours))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert loaded.tokens == ours.tokens
    with pytest.raises(KDError, match="in RecBole's form already"):
        export_recbole(path, tmp_path / "again.pth")


def test_the_exported_seed_is_the_splits(tmp_path: Path) -> None:
    tiny.save("BPR", tmp_path / "best.pt", seed=1)
    path = export_recbole(tmp_path, tmp_path / "student.pth")
    options = checkpoint.load(path)["config"].final_config_dict
    assert options["seed"] == 1
    own = {"method", "import_path", "split_seed"}
    assert not own & options.keys()
    loaded = load_model(path)
    assert torch.equal(loaded.history.items, tiny.split("BPR", "tiny", 1).history.items)


def test_save_format_recbole_writes_both(tmp_path: Path) -> None:
    result = tiny.run("BPR", tmp_path, save_format="recbole")
    both = [load_model(result["checkpoints"][key]) for key in ("student", "recbole")]
    a, b = (m.model.state_dict() for m in both)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


class Outside(BPR):
    """A model that RecBole does not have."""


@pytest.mark.parametrize("name", [f"{__name__}:Outside", "a.b.c:Outside"])
def test_a_class_from_outside_is_not_exported(name: str, tmp_path: Path) -> None:
    content = checkpoint.load(tiny.save("BPR", tmp_path / "good.pt"))
    checkpoint.save(tmp_path / "own.pt", {**content, "model": name})
    with pytest.raises(KDError, match=r"Outside is not one of RecBole's"):
        export_recbole(tmp_path / "own.pt", tmp_path / "own.pth")
    assert not (tmp_path / "own.pth").exists()


def test_a_class_from_outside_is_opened(tmp_path: Path) -> None:
    name = f"{__name__}:Outside"
    values = {k: v for k, v in tiny.options("BPR").items() if k != "embedding_size"}
    sources = Sources.collect(
        "Scratch", tiny.dataset(), name, options={**values, "embedding_size": 8}
    )
    config = KDConfig(sources)
    part = load_split(config)
    content = deploy.describe(config, part, epoch=0, best_valid_score=0.0)
    state = Outside(config, part.train).state_dict()
    checkpoint.save(tmp_path / "own.pt", {**content, "state_dict": state})
    loaded = load_model(tmp_path / "own.pt")
    assert type(loaded.model).__name__ == "Outside"
    assert content["versions"]["recbole_kd"] == recbole_kd.__version__
