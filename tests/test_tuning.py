"""The search: its ranges, its files, its life, and that it never sees the test split."""

from __future__ import annotations

import csv
import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from recbole_kd import run_recbole_kd, training
from recbole_kd.cli import main
from recbole_kd.defaults import method_defaults, method_ranges, readers_of
from recbole_kd.errors import KDError
from recbole_kd.methods.rd import RD
from recbole_kd.options import SECTIONS, Sources, parse_arguments, read_yaml
from recbole_kd.quick_start import Run
from recbole_kd.registry import SCRATCH
from recbole_kd.resources import properties_dir
from recbole_kd.trainer import RunTrainer
from recbole_kd.tuning import study as study_module
from recbole_kd.tuning import tune
from recbole_kd.tuning.search import Search
from recbole_kd.tuning.space import Choices, Numbers, read_ranges, to_ranges
from recbole_kd.tuning.study import RefusedError, Study

optuna = pytest.importorskip("optuna")

METHODS = sorted(path.stem for path in (properties_dir() / "method").glob("*.yaml"))
SPACE = "kd_weight: {low: 0.1, high: 100.0, log: true}\nce_K: {low: 5, high: 25, step: 5}\n"


# -- what is shipped ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_defaults_and_recipes_lie_within_the_ranges(method: str) -> None:
    ranges = to_ranges(method_ranges(method), method)
    defaults = method_defaults(method)
    assert set(ranges) <= set(defaults) - set(SECTIONS)
    assert "range" not in defaults
    assert "kd_weight" in ranges
    recipes = [read_yaml(p) for p in properties_dir().glob(f"recipe/*/*/{method}*.yaml")]
    for values in (defaults, *recipes):
        said = {k: values[k] for k in ranges if k in values}
        assert {k: v for k, v in said.items() if not ranges[k].holds(v)} == {}
    for key, one in ranges.items():
        if isinstance(one, Numbers) and one.whole:
            assert type(defaults[key]) is int, key
        elif isinstance(one, Choices):
            assert {type(v) for v in one.choices} == {type(defaults[key])}, key


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("RCEKD", "rcekd_K", "rcekd_M"),
        ("RCEKD", "rcekd_L", "rcekd_M"),
        ("RRD", "rrd_K", "rrd_M"),
        ("DCD", "dcd_K", "dcd_M"),
        ("DE", "de_end_T", "de_start_T"),
    ],
)
def test_shipped_ranges_make_no_combination_that_is_refused(
    method: str, low: str, high: str
) -> None:
    ranges = method_ranges(method)
    assert ranges[low]["high"] <= ranges[high]["low"]


def test_a_student_alone_has_ranges_of_its_training() -> None:
    ranges = to_ranges(method_ranges(SCRATCH), "")
    assert ranges["learning_rate"].holds(0.001)
    assert ranges["weight_decay"].holds(0.0)
    assert ranges["weight_decay"].widened(4.8828e-9).holds(4.8828e-9)


class Inheriting(RD):
    """An outside method with the defaults and ranges of RD."""


class Own(RD):
    """An outside method with both of its own."""

    defaults = {"kd_weight": 1.0, "own_K": 3}
    ranges = {"own_K": {"low": 1, "high": 9}}


class Half(RD):
    """An outside method with options of its own, of which RD's ranges know one."""

    defaults = {"kd_weight": 1.0, "own_K": 3}


class Empty(RD):
    """An outside method with options that no ranges know."""

    defaults = {"own_K": 3}


def test_ranges_of_methods_from_outside() -> None:
    assert method_ranges(f"{__name__}:Inheriting") == method_ranges("RD")
    assert method_ranges(f"{__name__}:Own") == Own.ranges
    assert set(method_ranges(f"{__name__}:Half")) == {"kd_weight"}


def test_range_is_no_option() -> None:
    assert readers_of("range") == []
    with pytest.raises(KDError, match="option 'range' is read by no part"):
        run_recbole_kd("CE", tiny.dataset(), config_dict={"range": 1}, student="BPR", teacher="BPR")


# -- files of ranges ---------------------------------------------------------------------------


def test_a_hyper_file_means_what_it_means_to_hyperopt(tmp_path: Path) -> None:
    path = tmp_path / "a.hyper"
    path.write_text(
        "learning_rate loguniform -8,0\n"
        "\n# a comment\n"
        "embedding_size choice [64, 96 , 128]\n"
        "train_batch_size quniform 100,1001,100\n"
        "dropout quniform 0.1,0.5,0.1\n"
        "weight_decay uniform 0, 1e-3\n"
        "mlp_hidden_size choice ['[64,64]',[32],None]\n"
        "kind choice ['a','b']\n"
    )
    assert read_ranges(path) == {
        "learning_rate": Numbers(math.exp(-8), 1.0, None, True),
        "embedding_size": Choices((64, 96, 128)),
        "train_batch_size": Numbers(100, 1000, 100),
        "dropout": Numbers(0.1, 0.5, 0.1),
        "weight_decay": Numbers(0.0, 0.001),
        "mlp_hidden_size": Choices(([64, 64], [32], None)),
        "kind": Choices(("a", "b")),
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kd_weight", "found 'kd_weight'; allowed are key choice"),
        ("kd_weight normal 0,1", "found 'kd_weight normal 0,1'"),
        ("kd_weight uniform 0", "found '0'; allowed are 2 numbers, uniform low,high"),
        ("kd_weight uniform 0,x", "found '0,x'"),
        ("kd_weight uniform 2,1", "found low 2 and high 1"),
        ("kd_weight quniform 0,10", "allowed are 3 numbers"),
        ("kd_weight quniform 0,10,0", "found step 0"),
        ("kd_weight loguniform 1,1000", "allowed are logarithms"),
        ("kd_weight choice 3", "found '3'; allowed is a list"),
        ("kd_weight choice (1,2)", "allowed is a list"),
        ("kd_weight choice [__import__('os').getcwd()", "allowed is a list"),
        ("kd_weight choice []", "found choices []"),
        ("kd_weight choice [1,1]", "each once"),
        ("ce_K uniform 0,1", "'ce_K' twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.hyper"
    path.write_text(f"ce_K choice [1]\n\n{line}\n")
    with pytest.raises(KDError) as refusal:
        read_ranges(path)
    assert str(refusal.value).startswith(f"--params_file={path} line 3: ")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: 3",
        "a: {low: 1}",
        "a: {low: 1, high: 9, q: 1}",
        "a: {low: 9, high: 1}",
        "a: {low: 0, high: 1, log: true}",
        "a: {low: 1, high: 9, log: true, step: 1}",
        "a: {low: 1, high: 9, step: -1}",
        "a: {low: 1, high: 9, step: 10}",
        "a: {low: one, high: 9}",
        "a: {choices: 3}",
        "a: {choices: []}",
        "{}",
    ],
)
def test_a_bad_range_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(KDError, match=rf"^--params_file={path}: .*(allowed|needed)"):
        read_ranges(path)


def test_ranges_hold_and_widen() -> None:
    grid = Numbers(20, 200, 10)
    assert [grid.holds(v) for v in (20, 200, 25, 30.0, True, None)] == [True, True, *[False] * 4]
    assert grid.widened(25) == Numbers(20, 200)
    assert grid.widened(300) == Numbers(20, 300)
    assert grid.widened(0.5) == grid.widened(None) == grid
    log = Numbers(0.1, 1.0, None, True)
    assert log.widened(5) == Numbers(0.1, 5, None, True)
    assert log.widened(0.0) == log
    assert Numbers(0.1, 0.9, 0.1).holds(0.7)
    assert Choices((1, 2)).widened(True) == Choices((1, 2, True))


# -- the study, without training ---------------------------------------------------------------

RANGES = to_ranges(
    {"x": {"low": 0.0, "high": 1.0}, "n": {"low": 1, "high": 9}, "c": {"choices": [[1], None]}}, ""
)


def small_study(folder: Path, **more: Any) -> Study:
    given = {"identity": {"a": 1, "o": {"k": 1}}, "seed": 3, "maximise": True}
    folder.mkdir(exist_ok=True)
    return Study(folder, RANGES, **{**given, "pruner": "none", "warmup_epochs": 0, **more})


def score(params: dict[str, Any], report: Callable[[int, float], None]) -> float:
    value = params["x"] + params["n"] / 10 + (params["c"] == [1])
    report(0, value)
    return value


class KilledError(BaseException):
    """Nothing of a study can catch it, as nothing can when its process is killed."""


def test_a_killed_study_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = list(small_study(tmp_path / "whole").go_on(11, score))  # ten are drawn blindly
    calls = []

    def killed(params: dict[str, Any], report: Callable[[int, float], None]) -> float:
        calls.append(params)
        if len(calls) in (1, 12):
            raise KilledError
        return score(params, report)

    for _ in range(2):
        with pytest.raises(KilledError):
            list(small_study(tmp_path / "cut").go_on(11, killed))
    list(small_study(tmp_path / "cut").go_on(11, killed))
    assert len(calls) == 13
    assert calls[0] == calls[1]
    again = small_study(tmp_path / "cut")
    assert [(o.params, o.value) for o in again.outcomes()] == [(o.params, o.value) for o in whole]
    assert len({str(o.params) for o in whole}) == 11
    assert list(again.go_on(11, score)) == []
    assert again.best() == max(again.outcomes(), key=lambda o: o.value)


def test_a_trial_that_goes_wrong_does_not_end_the_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = {
        "": ("complete", None),
        "K is above M": ("refused", RefusedError("K is above M")),
        "the loss is nan": ("failed", KDError("the loss is nan")),
        "RuntimeError: out of memory": ("failed", RuntimeError("out of memory\nat line 3")),
        "MemoryError": ("failed", MemoryError()),
        "the best validation score is nan": ("failed", math.nan),
        "the best validation score is -inf": ("failed", -math.inf),
    }

    def objective(params: dict[str, Any], report: Callable[[int, float], None]) -> float:
        _, end = list(ends.values())[len(study.outcomes())]
        if isinstance(end, Exception):
            raise end
        if end is not None:
            report(0, end)
            return end
        return score(params, report)

    study = small_study(tmp_path / "s", pruner="median")
    with caplog.at_level(logging.DEBUG, "recbole_kd"):
        outcomes = list(study.go_on(len(ends), objective))
    assert [(o.reason, o.state) for o in outcomes] == [(k, v[0]) for k, v in ends.items()]
    (no_memory,) = [r for r in caplog.records if r.getMessage() == "trial 3 failed"]
    assert no_memory.levelno == logging.DEBUG
    assert "at line 3" in str(no_memory.exc_text)
    assert study.best() == outcomes[0]
    with study.write_table().open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == [o.state for o in outcomes]
    assert float(rows[0]["x"]) == outcomes[0].params["x"]
    again = small_study(tmp_path / "s")
    assert [o.reason for o in again.outcomes()] == list(ends), "none is repeated"


def test_a_trial_may_be_stopped_by_hand_as_often_as_one_likes(tmp_path: Path) -> None:
    ends = [KeyboardInterrupt, KilledError, *[KeyboardInterrupt] * 4, KilledError, None, None]
    calls: list[dict[str, Any]] = []

    def stopped(params: dict[str, Any], report: Callable[[int, float], None]) -> float:
        calls.append(params)
        if (end := ends[len(calls) - 1]) is not None:
            raise end
        return score(params, report)

    for end in ends[:-2]:
        assert end is not None
        with pytest.raises(end):
            list(small_study(tmp_path / "s").go_on(2, stopped))
    outcomes = list(small_study(tmp_path / "s").go_on(2, stopped))
    assert calls[:-1] == [calls[0]] * (len(ends) - 1)
    assert [o.state for o in outcomes] == ["complete"] * 2


def test_a_trial_is_killed_three_times_at_most(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def killed(params: dict[str, Any], report: Callable[[int, float], None]) -> float:
        calls.append(params)
        if params == calls[0]:
            raise KilledError
        return score(params, report)

    for _ in range(3):
        with pytest.raises(KilledError):
            list(small_study(tmp_path / "s").go_on(3, killed))
    study = small_study(tmp_path / "s")
    list(study.go_on(3, killed))
    assert calls[:3] == [calls[0]] * 3
    outcomes = study.outcomes()
    assert [(o.number, o.state, o.reason) for o in outcomes] == [
        (2, "failed", "killed 3 times"),
        (3, "complete", ""),
        (4, "complete", ""),
    ]
    assert outcomes[0].params == calls[0]
    assert small_study(tmp_path / "s").outcomes() == outcomes


def test_a_trial_below_the_median_is_stopped_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "STARTUP_TRIALS", 2)

    def objective(params: dict[str, Any], report: Callable[[int, float], None]) -> float:
        level = [5.0, 6.0, 1.0, 9.0][len(study.outcomes())]
        for epoch in range(4):
            report(epoch, level)
        return level

    study = small_study(tmp_path / "s", pruner="median", warmup_epochs=2)
    outcomes = list(study.go_on(4, objective))
    assert [(o.state, o.epoch) for o in outcomes] == [
        ("complete", 3),
        ("complete", 3),
        ("pruned", 2),
        ("complete", 3),
    ]


def test_less_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    study = small_study(tmp_path / "s", maximise=False)
    outcomes = list(study.go_on(4, score))
    assert study.best().value == min(o.value for o in outcomes)


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    list(small_study(tmp_path / "s").go_on(1, score))
    small_study(tmp_path / "s")
    for identity, said in (
        ({"a": 2, "o": {"k": 1}}, "its a is 1, here it is 2"),
        ({"a": 1, "o": {"k": 2}}, "its o, k is 1, here it is 2"),
    ):
        with pytest.raises(KDError, match=said):
            small_study(tmp_path / "s", identity=identity)


def test_a_damaged_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(KDError, match=r"^--study: .*study\.db cannot be opened as a study"):
        small_study(tmp_path)


# -- the search --------------------------------------------------------------------------------


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Options of a quick run; ``...`` takes one out."""
    tiny.dataset()
    given = {
        **tiny.options("BPR", checkpoint_dir=str(folder / "saved"), epochs=2),
        "learning_rate": 0.02,
        "teacher": {"embedding_size": 16},
        "scratch": False,
        **more,
    }
    return {key: value for key, value in given.items() if value is not ...}


def search(folder: Path, trials: int = 3, space: str = SPACE, **more: Any) -> dict[str, Any]:
    path = folder / "space.yaml"
    path.write_text(space)
    given = {"student": "BPR", "teacher": "BPR", "params_file": path, "trials": trials}
    options = settings(folder, **more.pop("options", {}))
    named = {**given, "study": folder / "study", **more}
    return tune(named.pop("model", "CE"), tiny.dataset(), config_dict=options, **named)


def comparable(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(t["params"], t["value"], t["state"]) for t in result["trials"]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is trained, and what is evaluated while a trial runs; the test split raises there."""
    seen: dict[str, list[Any]] = {"trained": [], "in_trial": []}
    inside: list[bool] = []
    trial, train, make = Run.trial, training.train, training.make_loaders

    def watched_trial(self: Run, *parts: Any) -> Any:
        inside.append(True)
        try:
            return trial(self, *parts)
        finally:
            inside.pop()

    def watched_train(config: Any, *parts: Any, **more: Any) -> Any:
        seen["trained"].append((config.role, bool(inside)))
        return train(config, *parts, **more)

    class Poison:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"a trial asked the test split for {name}")

    def watched_loaders(*parts: Any) -> Any:
        loaders = make(*parts)
        return (*loaders[:2], Poison()) if inside else loaders

    monkeypatch.setattr(Run, "trial", watched_trial)
    monkeypatch.setattr(training, "train", watched_train)
    monkeypatch.setattr(training, "make_loaders", watched_loaders)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search of three trials that ran through."""
    return search(tmp_path_factory.mktemp("whole"))


def test_a_search(tmp_path: Path, watched: dict[str, list[Any]], whole: dict[str, Any]) -> None:
    result = search(tmp_path, options={"scratch": True})
    assert comparable(result) == comparable(whole), "it is reproducible"
    student, teacher, scratch = ("student", True), ("teacher", False), ("scratch", False)
    assert watched["trained"] == [teacher, student, student, student, scratch, ("student", False)]
    states = [t["state"] for t in result["trials"]]
    assert states == ["complete"] * 3
    best = max(result["trials"], key=lambda t: t["value"])
    assert result["best_params"] == best["params"]
    assert result["best_valid_score"] == best["value"]
    assert result["test_result"]["ndcg@10"] > 0
    assert result["scratch_test_result"] is not None
    assert result["teacher_test_result"] is not None
    text = Path(result["recipe"]).read_text()
    recipe = yaml.safe_load(text)
    assert {k: recipe[k] for k in best["params"]} == best["params"]
    assert recipe["learning_rate"] == 0.02
    assert recipe["teacher"] == {"embedding_size": 16}
    assert not {"data_path", "checkpoint_dir", "seed", "state"} & set(recipe)
    for said in ("ndcg@10 on validation", "optuna", "properties/recipe/tiny/BPR-BPR/CE.yaml"):
        assert said in text
    rows = (tmp_path / "study" / "trials.csv").read_text().splitlines()
    assert len(rows) == 4
    # The recipe alone gives the same training.
    (line,) = [x[2:] for x in text.splitlines() if x.startswith("# recbole-kd train ")]
    options = parse_arguments(shlex.split(line)[2:])
    del options["config_files"]
    more = {"data_path": str(tiny.data_path()), "checkpoint_dir": str(tmp_path / "other")}
    again = run_recbole_kd(
        config_file_list=[result["recipe"]],
        command_line={**options, **more, "scratch": False, "state": "WARNING"},
    )
    assert again["best_valid_score"] == result["best_valid_score"]
    assert again["test_result"] == result["test_result"]


def test_a_search_that_was_killed_goes_on(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    begun: list[int] = []
    run_next, resume = Study._next, RunTrainer.resume

    def killed(self: Study, done: int, objective: Any) -> int:
        def dying(params: dict[str, Any], report: Any) -> float:
            def reported(epoch: int, value: float) -> None:
                report(epoch, value)
                epochs.append(epoch)
                if len(epochs) == 4:  # the second trial's second epoch
                    raise KeyboardInterrupt

            return objective(params, reported)

        return run_next(self, done, dying)

    def resumed(self: RunTrainer, *parts: Any) -> None:
        resume(self, *parts)
        begun.append(self.start_epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_next", killed)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path)
    monkeypatch.setattr(RunTrainer, "resume", resumed)
    cut = search(tmp_path)
    assert comparable(cut) == comparable(whole)
    assert [t["number"] for t in cut["trials"]] == [0, 2, 3]
    assert cut["test_result"] == whole["test_result"]
    assert begun == [1, 2]  # the killed trial, and the best one to be tested
    assert comparable(search(tmp_path, trials=1)) == comparable(whole)


def test_a_refused_combination_and_a_diverging_training(tmp_path: Path) -> None:
    space = "ce_K: {choices: [10, 5000]}\nlearning_rate: {choices: [0.02, 1.0e+30]}\n"
    result = search(tmp_path, 5, space, options={"learning_rate": ..., "epochs": 1})
    reasons: dict[str, set[str]] = {}
    for trial in result["trials"]:
        reasons.setdefault(trial["state"], set()).add(trial["reason"][:16])
    assert reasons == {
        "complete": {""},
        "refused": {"--ce_K=5000: the"},
        "failed": {"training stopped"},
    }


def test_a_pruned_trial_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "STARTUP_TRIALS", 1)
    space = "student.learning_rate: {choices: [0.02, 1.0e-9]}\n"
    options = {"learning_rate": 0.02, "ce_K": 50, "epochs": 3, "teacher": {"epochs": 1}}
    given = {"options": {**options, "learning_rate": ...}, "warmup_epochs": 1}
    result = search(tmp_path, 3, space, **given)
    pruned = [t for t in result["trials"] if t["state"] == "pruned"]
    assert {(t["epoch"], t["params"]["student.learning_rate"]) for t in pruned} == {(1, 1e-9)}
    assert result["best_params"] == {"student.learning_rate": 0.02}
    logs = sorted((tmp_path / "saved" / "tiny").glob("CE-BPR-BPR-*/metrics.jsonl"))
    epochs = [len(log.read_text().splitlines()) for log in logs]
    assert sorted(epochs) == [2, 3]
    recipe = read_yaml(result["recipe"])
    assert recipe["student"]["learning_rate"] == 0.02
    assert "learning_rate" not in recipe["teacher"]


def test_a_student_alone(tmp_path: Path, watched: dict[str, list[Any]]) -> None:
    options = settings(tmp_path, learning_rate=..., teacher=..., scratch=...)
    result = tune(SCRATCH, tiny.dataset(), config_dict=options, student="BPR", trials=2)
    assert [t["state"] for t in result["trials"]] == ["complete"] * 2
    assert watched["trained"] == [("student", True)] * 2 + [("student", False)]
    logs = (tmp_path / "saved" / "tiny").glob("BPR-*/metrics.jsonl")
    assert [len(log.read_text().splitlines()) for log in logs] == [2, 2]  # it is only tested
    assert set(result["best_params"]) == {"learning_rate", "weight_decay"}
    assert result["trials"][0]["params"] == {"learning_rate": 0.001, "weight_decay": 0.0}
    assert result["test_result"]["ndcg@10"] > 0
    assert "properties/recipe/tiny/BPR/Scratch.yaml" in Path(result["recipe"]).read_text()


def test_an_assistant_is_not_tested_either(tmp_path: Path, watched: dict[str, list[Any]]) -> None:
    space = "tarec_tau: {low: 0.5, high: 5.0}\n"
    result = search(tmp_path, 2, space, model="TARec", options={"tarec_K": 10, "epochs": 1})
    assert [t["state"] for t in result["trials"]] == ["complete"] * 2
    assert result["test_result"]["ndcg@10"] > 0


def test_shipped_ranges_without_what_is_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = settings(tmp_path, ce_K=10, ce_guide="teacher", ce_tau=1.0, state="INFO", epochs=1)
    with caplog.at_level(logging.INFO):
        result = tune(
            "CE", tiny.dataset(), config_dict=options, student="BPR", teacher="BPR", trials=2
        )
    assert set(result["best_params"]) == {"kd_weight"}
    assert result["trials"][0]["params"] == {"kd_weight": 500.0}
    lines = [r.getMessage() for r in caplog.records]
    assert len([x for x in lines if x.startswith("trial ")]) == 2
    first = next(n for n, x in enumerate(lines) if x.startswith("trial 0 "))
    assert not [x for x in lines[first : first + 2] if x.startswith("epoch ")]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "more", "said"),
    [
        ("kd_wieght: {low: 1, high: 2}", {}, "option 'kd_wieght' is read by no part"),
        ("topk: {choices: [5, 10]}", {}, "found topk, which is the same in all trials"),
        ("seed: {low: 1, high: 9}", {}, "found seed, which is the same in all trials"),
        ("teacher.epochs: {low: 1, high: 9}", {}, "found teacher.epochs, which is the same"),
        ("student.kd_weight: {low: 1, high: 9}", {}, "'student.kd_weight' is read by no part"),
        ("embedding_size: {low: 1, high: 9}", {}, "found embedding_size, which is set as well"),
        (SPACE, {"trials": 0}, "--trials=0: allowed are whole numbers from 1"),
        (SPACE, {"trials": "many"}, "--trials=many"),
        (SPACE, {"warmup_epochs": -1}, "--warmup_epochs=-1"),
        (SPACE, {"pruner": "mean"}, "--pruner=mean: allowed are median, none"),
        (SPACE, {"options": {"resume": "x.pt"}}, "--resume=x.pt"),
        (SPACE, {"options": {"eval_step": 0}}, "--eval_step=0: allowed are whole numbers above 0"),
        (SPACE, {"options": {"nproc": 2}}, "--nproc=2"),
        (SPACE, {"params_file": "nowhere.hyper"}, "--params_file=nowhere.hyper: No such file"),
        (SPACE, {"teacher": None, "options": {"teacher": ...}}, "--teacher is missing"),
        (
            "rrd_T: {low: 1, high: 9}",
            {"model": "RRD", "options": {"rrd_K": 30, "rrd_M": 20}},
            "--rrd_K=30: found rrd_M=20; allowed are values up to that",
        ),
        ("kd_weight: {low: 0.1, high: 9.0}", {"options": {"ce_K": 500}}, "--ce_K=500: the data"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    tmp_path: Path, space: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(KDError) as refusal:
        search(tmp_path, space=space, **more)
    assert said in str(refusal.value)
    assert [p.name for p in tmp_path.iterdir()] == ["space.yaml"]


@pytest.mark.parametrize(
    ("model", "space", "own"),
    [
        ("RRD", "rrd_M: {low: 2, high: 9}", {"rrd_K": 4, "rrd_L": 5}),
        # The refusal does not name what is searched: --ce_K=500: the data set has 120 items.
        ("CE", "ce_guide: {choices: [teacher, all]}", {"ce_K": 500}),
    ],
)
def test_what_a_searched_option_can_put_right_is_not_refused(
    tmp_path: Path, model: str, space: str, own: dict[str, Any]
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(space)
    options = settings(tmp_path, **own)
    sources = Sources.collect(model, tiny.dataset(), "BPR", "BPR", options=options)
    searched = Search(sources, path, "none", 0)
    with pytest.raises(KDError, match="the data set has 120 items"):
        searched.base.check()


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("VkD", {"kd_weight": 1, "vkd_center": True, "vkd_norm": True}, "vkd_norm are set"),
        (f"{__name__}:Empty", {}, "it has no ranges"),
    ],
)
def test_nothing_to_search(tmp_path: Path, model: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(KDError, match=f"^tune: found nothing to search .*{said}; allowed is --par"):
        search(tmp_path, model=model, params_file=None, options=options)


def test_a_study_is_of_one_search_and_one_process(
    tmp_path: Path, watched: dict[str, list[Any]]
) -> None:
    search(tmp_path, 1, options={"epochs": 1})
    watched["trained"].clear()
    for more, said in (
        ({"options": {"epochs": 2}}, "its options, epochs is 1, here it is 2"),
        ({"options": {"epochs": 1, "split_seed": 7}}, "its split, train is"),
        ({"options": {"epochs": 1, "teacher": {"embedding_size": 8}}}, "its teacher is"),
        ({"options": {"epochs": 1}, "model": "RD", "space": "rd_T: {low: 1, high: 2}"}, "method"),
        ({"options": {"epochs": 1}, "space": "ce_K: {low: 5, high: 9}"}, "its search space"),
    ):
        with pytest.raises(KDError, match=said):
            search(tmp_path, **more)
    with training.locked(tmp_path / "study", wait=False), pytest.raises(KDError, match="one at a"):
        search(tmp_path, options={"epochs": 1})
    assert watched["trained"] == []


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KDError, match=r"^recbole-kd tune needs .* pip install optuna$"):
        search(tmp_path)


def test_none_that_comes_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.hyper"
    path.write_text("ce_K quniform 1000,2000,10\n")
    words = [f"--{k}={v}" for k, v in settings(tmp_path).items() if k != "teacher"]
    names = ["--model=CE", "--student=BPR", "--teacher=BPR", f"--dataset={tiny.dataset()}"]
    own = ["--trials=2", f"--params_file={path}", "--teacher.embedding_size=16"]
    assert main(["tune", *names, *words, *own]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "recbole-kd: tune: none of 2 trials came to its end" in err
    assert "the data set has 120 items" in err
