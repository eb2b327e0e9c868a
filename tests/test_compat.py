"""The adaptations of RecBole 1.2.1: each is needed here, each is right, and no other was made."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.evaluator.collector import Collector
from recbole.model.general_recommender import NGCF
from recbole.model.general_recommender import LightGCN as RecBoleLightGCN
from recbole.trainer import Trainer
from recbole.utils import ModelType, get_trainer
from scipy.sparse import dok_matrix
from tiny import config_for

import recbole_kd
from recbole_kd import checkpoint, compat, run_recbole_kd
from recbole_kd.cli import main
from recbole_kd.config import KDConfig
from recbole_kd.data import Split
from recbole_kd.errors import KDError
from recbole_kd.loaders import make_loaders
from recbole_kd.trainer import RunTrainer
from recbole_kd.training import build_plain, check_data

FOLDER = Path(recbole.__file__).parent
NUMPY_2 = int(np.__version__.split(".")[0]) >= 2
SHOWN = {
    "numpy aliases": "test_numpy_names_*, test_stock_symptoms",
    "dok_matrix._update": "test_graph_models_*",
    "torch.load weights_only": "test_stock_checkpoints_*",
    "quick_start imports ray": "test_stock_symptoms, test_a_run_leaves_*",
    "anomaly detection": "test_sequential_models_*, test_a_run_leaves_*",
    "in-place fillna": "test_versions_*",
    "trainer's folders": "test_stock_trainers_*, test_a_run_leaves_*",
    "catalogue metrics": "test_evaluation.py: test_metrics_of_the_catalogue",
    "float32 times": "test_data.py: test_sessions_are_ordered_by_the_second",
}
"""Where each shim is shown to be needed and right."""


def python(cwd: Path, code: str) -> Any:
    """What a fresh interpreter prints last, from JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_shim_is_shown() -> None:
    assert [s.name for s in compat.SHIMS] == list(SHOWN)
    here = {name for name in globals() if name.startswith("test_")}
    for places in SHOWN.values():
        for place in places.split(", "):
            stem = place.rpartition(": ")[2].rstrip("*")
            source = Path(__file__).with_name(place.partition(": ")[0]) if ": " in place else None
            names = set(re.findall(r"def (\w+)", source.read_text())) if source else here
            assert [n for n in names if n.startswith(stem)], place


# -- symptoms without this package -------------------------------------------------------------

STOCK = """
import json, sys
found = {}
try:
    from recbole.config import Config
    Config(model="BPR", dataset="ml-100k")
    found["config"] = ""
except AttributeError as error:
    found["config"] = str(error)
try:
    import recbole.quick_start
    found["quick_start"] = ""
except (ImportError, AttributeError) as error:
    found["quick_start"] = str(error)
print(json.dumps(found))
"""


def test_stock_symptoms(tmp_path: Path) -> None:
    found = python(tmp_path, STOCK)
    assert ("np.float_" in found["config"]) == NUMPY_2
    if not found["quick_start"]:
        pytest.skip("recbole.quick_start can be imported here: ray and pkg_resources are there")
    assert re.search("pkg_resources|ray|bool8", found["quick_start"])


# -- numpy -------------------------------------------------------------------------------------


def test_numpy_names_are_those_recbole_reads() -> None:
    removed = "bool|int|float|complex|object|str|long|unicode|bool8|float_|complex_|string_"
    pattern = re.compile(rf"\bnp\.({removed})\b")
    read = {
        name
        for path in FOLDER.rglob("*.py")
        if path.name != "configurator.py"  # its compatibility_settings is overridden
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert read == set(compat.NUMPY_ALIASES)


def test_numpy_names_stand_for_pythons_types() -> None:
    for name, python_type in {"bool": bool, "float": float, "str": str, "long": int}.items():
        assert np.dtype(getattr(np, name)) == np.dtype(python_type)


@pytest.mark.filterwarnings("ignore:In the future")
@pytest.mark.parametrize("name", sorted(compat.NUMPY_ALIASES))
def test_numpy_names_are_added_where_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name not in recbole_kd.adapted["numpy aliases"]:
        assert NUMPY_2, "numpy 1 from 1.24 on has none of them"
        assert name in {"bool", "long"}, "numpy 2 has these two of its own"
        return
    assert getattr(np, name) is compat.NUMPY_ALIASES[name]
    monkeypatch.delattr(np, name)
    assert not hasattr(np, name)
    assert compat.numpy_aliases() == [name]
    assert compat.numpy_aliases() == []
    assert getattr(np, name) is compat.NUMPY_ALIASES[name]


@pytest.mark.filterwarnings("ignore:In the future")
def test_numpy_names_are_missed_by_recbole(monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.evaluator.metrics import MAP

    hits, lengths = np.array([[1, 0, 1]]), np.array([2])
    average = MAP({"topk": [3], "metric_decimal_place": 4})
    expected = [1.0, 0.5, (1 + 2 / 3) / 2]
    assert average.metric_info(hits, lengths)[0].tolist() == pytest.approx(expected)
    monkeypatch.delattr(np, "float")
    with pytest.raises(AttributeError, match="float"):
        average.metric_info(hits, lengths)


# -- scipy -------------------------------------------------------------------------------------


def normalised_adjacency(split: Split) -> torch.Tensor:
    """``D^-1/2 A D^-1/2`` of the bipartite train graph, entry by entry."""
    users, items = split.history.pairs()
    n_users, n_items = len(split.tokens.users), len(split.tokens.items)
    graph = torch.zeros(n_users + n_items, n_users + n_items, dtype=torch.float64)
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        graph[user, n_users + item] = graph[n_users + item, user] = 1
    scale = (graph.sum(1) + 1e-7) ** -0.5
    return scale[:, None] * graph * scale


@pytest.mark.parametrize("cls", [RecBoleLightGCN, NGCF])
def test_graph_models_get_the_right_adjacency(root: Path, split: Split, cls: type) -> None:
    config = config_for(root, student=cls.__name__)
    found = cls(config, split.train).norm_adj_matrix.to_dense().double()
    torch.testing.assert_close(found, normalised_adjacency(split), rtol=1e-6, atol=1e-9)


def test_graph_models_of_ours_have_the_same(root: Path, split: Split) -> None:
    ours = build_plain(config_for(root, student="LightGCN"), split).norm_adj_matrix
    torch.testing.assert_close(
        ours.to_dense().double(), normalised_adjacency(split), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("by_rows", [True, False])
def test_lightgcn_of_ours_is_recboles(
    root: Path, split: Split, by_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same embeddings, same loss, same gradients; with and without MKL."""
    compat.scipy_dok_update()
    config = config_for(root, student="LightGCN", n_layers=3, reg_weight=0.1)
    theirs = RecBoleLightGCN(config, split.train)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: by_rows)
    ours = build_plain(config, split)
    layout = torch.sparse_csr if by_rows else torch.sparse_coo
    assert ours.norm_adj_matrix.layout == layout
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    columns = {
        "user_id": torch.randint(1, split.history.n_users, (64,), generator=generator),
        "item_id": torch.randint(1, split.history.n_items, (64,), generator=generator),
        "neg_item_id": torch.randint(1, split.history.n_items, (64,), generator=generator),
    }
    gradients = []
    for model in (theirs, ours):
        loss = model.calculate_loss(Interaction(columns))
        loss.backward()
        gradients.append([loss, *model.forward(), *(p.grad for p in model.parameters())])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_lightgcn_in_mixed_precision(root: Path, split: Split) -> None:
    model = build_plain(config_for(root, student="LightGCN"), split)
    exact = model.forward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        users, items = model.forward()
    assert users.dtype == items.dtype == torch.float32
    assert torch.equal(users, exact[0])
    assert torch.equal(items, exact[1])


def test_lightgcns_initial_spread(root: Path, split: Split) -> None:
    std = [
        build_plain(
            config_for(root, student="LightGCN", embedding_size=256, init_std=given), split
        ).item_embedding.weight.std()
        for given in (None, 0.1, 2.0)
    ]
    assert std[0] < 0.09
    assert std[1].item() == pytest.approx(0.1, rel=0.05)
    assert std[2].item() == pytest.approx(2.0, rel=0.05)
    for wrong in (0, "big", float("inf")):
        config = config_for(root, student="LightGCN", init_std=wrong)
        with pytest.raises(KDError, match=f"--init_std={wrong}: allowed are numbers above 0"):
            check_data(config, split)


def test_graph_models_fail_without_the_method(
    root: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not recbole_kd.adapted["dok_matrix._update"]:
        pytest.skip("this scipy has the method")
    monkeypatch.delattr(dok_matrix, "_update")
    with pytest.raises(AttributeError, match="_update"):
        RecBoleLightGCN(config_for(root, student="LightGCN"), split.train)
    assert compat.scipy_dok_update()
    assert not compat.scipy_dok_update()
    RecBoleLightGCN(config_for(root, student="LightGCN"), split.train)


def test_graph_models_that_need_it_are_named() -> None:
    callers = {
        path.stem
        for path in FOLDER.joinpath("model").rglob("*.py")
        if "._update(" in path.read_text(encoding="utf-8")
    }
    named = next(s.symptom for s in compat.SHIMS if s.name == "dok_matrix._update")
    assert callers == {n.lower() for n in named.removesuffix(" raise AttributeError").split(", ")}


def test_graph_models_may_set_entries_twice() -> None:
    matrix = dok_matrix((3, 3), dtype=np.float32)
    matrix._update({(0, 1): 1, (2, 2): 5})
    matrix._update({(0, 1): 4})
    assert matrix.toarray().tolist() == [[0, 4, 0], [0, 0, 0], [0, 0, 5]]


# -- torch.load --------------------------------------------------------------------------------


def stock_config(config: KDConfig) -> Config:
    """The same options as RecBole's own class."""
    stock = Config.__new__(Config)
    stock.__dict__.update(config.__dict__)
    for name in ("sources", "layers", "yaml_loader"):  # classes of ours
        del stock.__dict__[name]
    return stock


@pytest.fixture
def stock(root: Path, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """RecBole's trainer of a BPR, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    config = config_for(root)
    model = build_plain(config, split)
    return Trainer(stock_config(config), model)


def test_stock_checkpoints_die_at_the_test_step(root: Path, split: Split, stock: Trainer) -> None:
    stock._save_checkpoint(0, verbose=False)
    test = make_loaders(config_for(root), split)[2]
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        stock.evaluate(test, load_best_model=True)
    content = checkpoint.load(stock.saved_model_file)
    assert set(content["state_dict"]) == set(stock.model.state_dict())
    assert isinstance(content["config"], checkpoint.Inert)


def test_stock_checkpoints_are_not_ours(root: Path, split: Split, tmp_path: Path) -> None:
    config = config_for(root, checkpoint_dir=str(tmp_path))
    trainer = RunTrainer(config, build_plain(config, split), tmp_path / "run")
    trainer._save_checkpoint(0, verbose=False)
    plain = torch.load(trainer.saved_model_file)
    assert set(plain["state_dict"]) == set(trainer.model.state_dict())


# -- anomaly detection -------------------------------------------------------------------------


@pytest.fixture
def anomaly_detection() -> Iterator[None]:
    """Puts the process-wide setting back."""
    before = torch.is_anomaly_enabled()
    yield
    torch.autograd.set_detect_anomaly(before)


@pytest.mark.usefixtures("anomaly_detection")
def test_sequential_models_switch_it_on() -> None:
    from recbole.model.sequential_recommender import sine

    torch.autograd.set_detect_anomaly(False)
    importlib.reload(sine)
    assert torch.is_anomaly_enabled()


@pytest.mark.usefixtures("anomaly_detection")
@pytest.mark.parametrize("before", [False, True])
def test_sequential_models_are_imported_with_the_setting_put_back(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    asked = []

    def first_import(name: str) -> str:
        torch.autograd.set_detect_anomaly(True)
        asked.append(name)
        return name

    monkeypatch.setattr(importlib, "import_module", first_import)
    torch.autograd.set_detect_anomaly(before)
    assert compat.import_sequential_models() == "recbole.model.sequential_recommender"
    assert torch.is_anomaly_enabled() is before
    assert len(asked) == 1


# -- folders -----------------------------------------------------------------------------------


def test_stock_trainers_write_where_they_stand(tmp_path: Path, stock: Trainer) -> None:
    assert (tmp_path / "log_tensorboard").is_dir()


def test_stock_trainers_are_kept_from_it(
    root: Path, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_for(root, checkpoint_dir=str(tmp_path / "saved"))
    model = build_plain(config, split)
    RunTrainer(config, model, tmp_path / "saved" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]
    RunTrainer(config_for(root, checkpoint_dir=str(tmp_path / "none")), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]


def test_stock_trainers_get_their_functions_back() -> None:
    import recbole.trainer.trainer as module

    originals = module.get_tensorboard, module.ensure_dir

    def fail() -> None:
        with compat.no_default_folders():
            assert module.get_tensorboard is not originals[0]
            assert module.ensure_dir is not originals[1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (module.get_tensorboard, module.ensure_dir) == originals


RUN = """
import json, os, sys
import recbole_kd
light = sorted({"torch", "recbole", "pandas"} & set(sys.modules))
result = recbole_kd.run_recbole_kd(
    "RCEKD", "tiny", student="BPR", teacher="BPR", config_dict={
        "data_path": ROOT, "epochs": 1, "show_progress": False, "scratch": False,
        "rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 9, "teacher.embedding_size": 4,
    },
)
import torch
found = {"anomaly": torch.is_anomaly_enabled(), "files": sorted(os.listdir())}
found.update(light=light, modules=sorted(sys.modules), result=result["test_result"])
print(json.dumps(found))
"""


def test_a_run_leaves_nothing_but_its_folder(root: Path, tmp_path: Path) -> None:
    found = python(tmp_path, RUN.replace("ROOT", repr(str(root))))
    assert found["light"] == []
    assert found["files"] == ["saved"]
    assert "recbole.trainer" in found["modules"]
    assert not {"recbole.quick_start", "ray", "thop"} & set(found["modules"])
    assert found["anomaly"] is False
    assert set(found["result"]) == {"recall@10", "recall@20", "ndcg@10", "ndcg@20"}


# -- versions ----------------------------------------------------------------------------------

TESTED = {
    "recbole": "1.2.1",
    "torch": "2.13.0+cpu",
    "numpy": "2.4.6",
    "pandas": "2.3.3",
    "scipy": "1.17.1",
}


@pytest.mark.parametrize(
    ("name", "version", "command"),
    [
        ("pandas", "3.0.1", "pip install 'pandas>=2.0,<3'"),
        ("pandas", "1.5.3", "pip install 'pandas>=2.0,<3'"),
        ("torch", "2.5.1+cu121", "pip install 'torch>=2.6,<2.14'"),
        ("torch", "2.14.0", "pip install 'torch>=2.6,<2.14'"),
        ("numpy", "3.0.0", "pip install 'numpy>=1.24,<3'"),
        ("recbole", "1.2.0", "pip install 'recbole>=1.2.1,<1.3'"),
        ("scipy", "2.0", "pip install 'scipy>=1.10,<2'"),
    ],
)
def test_versions_outside_are_refused(name: str, version: str, command: str) -> None:
    with pytest.raises(KDError) as caught:
        compat.check_versions({**TESTED, name: version})
    message = str(caught.value)
    assert f"{name} {version} is installed" in message
    assert message.endswith(command)
    assert "\n" not in message


@pytest.mark.parametrize(
    "versions",
    [
        TESTED,
        {**TESTED, "numpy": "1.26.4", "pandas": "2.0", "torch": "2.6.0"},
        {**TESTED, "torch": "2.10.0a0+git1", "scipy": "1.10.0rc1"},
    ],
)
def test_versions_inside_pass(versions: dict[str, str]) -> None:
    compat.check_versions(versions)


def test_versions_here_pass_and_missing_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.check_versions()
    monkeypatch.setitem(compat.REQUIREMENTS, "not-a-library", ("1", "2"))
    assert compat.version_problems() == [
        "not-a-library is missing: pip install 'not-a-library>=1,<2'"
    ]


def test_versions_do_not_stop_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Importing must go well, or nobody can say what is wrong; a run is refused in one line."""
    original = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: {"pandas": "3.0.1"}.get(name) or original(name)
    )
    compat.apply()
    assert main(["doctor"]) == 1
    assert "pandas 3.0.1 is installed" in capsys.readouterr().out
    assert main(["train", "-m", "Scratch", "-d", "ml-100k", "--student=BPR"]) == 2
    assert capsys.readouterr().err.startswith("recbole-kd: pandas 3.0.1 is installed")


def test_requirements_are_those_of_setup() -> None:
    path = Path(recbole_kd.__file__).resolve().parents[1] / "setup.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = next(
        ast.literal_eval(k.value)
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
        for k in n.keywords
        if k.arg == "install_requires"
    )
    wanted = {f"{name}>={low},<{high}" for name, (low, high) in compat.REQUIREMENTS.items()}
    assert wanted <= set(listed)
    assert not {x for x in set(listed) - wanted if re.split("[<>=]", x)[0] in compat.REQUIREMENTS}


# -- the private names we override -------------------------------------------------------------

SIGNATURES = {
    (Config, "compatibility_settings"): "(self)",
    (Config, "_build_yaml_loader"): "(self)",
    (Config, "_convert_config_dict"): "(self, config_dict)",
    (Config, "_load_config_files"): "(self, file_list)",
    (Config, "_load_variable_config_dict"): "(self, config_dict)",
    (Config, "_load_cmd_line"): "(self)",
    (Config, "_get_model_and_dataset"): "(self, model, dataset)",
    (Config, "_load_internal_config_dict"): "(self, model, model_class, dataset)",
    (Trainer, "__init__"): "(self, config, model)",
    (Trainer, "fit"): "(self, train_data, valid_data=None, verbose=True, saved=True, "
    "show_progress=False, callback_fn=None)",
    (Trainer, "evaluate"): "(self, eval_data, load_best_model=True, model_file=None, "
    "show_progress=False)",
    (Trainer, "_train_epoch"): "(self, train_data, epoch_idx, loss_func=None, show_progress=False)",
    (Trainer, "_build_optimizer"): "(self, **kwargs)",
    (Trainer, "_valid_epoch"): "(self, valid_data, show_progress=False)",
    (Trainer, "_save_checkpoint"): "(self, epoch, verbose=True, **kwargs)",
    (Trainer, "_check_nan"): "(self, loss)",
    (Collector, "eval_batch_collect"): "(self, scores_tensor: torch.Tensor, interaction, "
    "positive_u: torch.Tensor, positive_i: torch.Tensor)",
    (Collector, "get_data_struct"): "(self)",
    (FullSortEvalDataLoader, "_init_batch_size_and_step"): "(self)",
    (Dataset, "_dataframe_to_interaction"): "(self, data)",
    (SequentialDataset, "build"): "(self)",
}


@pytest.mark.parametrize(("owner", "name"), SIGNATURES)
def test_private_names_have_the_known_form(owner: type, name: str) -> None:
    found = str(inspect.signature(getattr(owner, name))).replace("'", "")
    assert found == SIGNATURES[owner, name]


@pytest.mark.parametrize(
    ("model", "family"),
    [("BPR", "GENERAL"), ("LightGCN", "GENERAL"), ("NeuMF", "GENERAL"), ("SASRec", "SEQUENTIAL")],
)
def test_the_models_we_distil_have_the_trainer_we_override(model: str, family: str) -> None:
    assert get_trainer(ModelType[family], model) is Trainer


# -- RecBole's models run ----------------------------------------------------------------------


@pytest.mark.parametrize("student", ["LightGCN", "BPR", "NeuMF", "MultiVAE", "SASRec", "GRU4Rec"])
def test_models_train_and_test(root: Path, student: str) -> None:
    result = run_recbole_kd(
        "Scratch",
        "tiny",
        student=student,
        saved=False,
        config_dict={
            "data_path": str(root),
            "checkpoint_dir": str(root / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "epochs": 1,
            "train_batch_size": 512,
            "show_progress": False,
            "state": "WARNING",
            **({"MAX_ITEM_LIST_LENGTH": 5} if student in {"SASRec", "GRU4Rec"} else {}),
        },
    )
    assert (result["epochs"], result["best_epoch"]) == (1, 0)
    assert list(result["test_result"]) == ["recall@10", "recall@20", "ndcg@10", "ndcg@20"]
    assert all(0 <= v <= 1 for v in result["test_result"].values())
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"] > 0
    assert f"| {student} " in result["table"]
