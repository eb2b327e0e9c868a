"""A benchmark: its file, its plan, its schedule, and a real one that is killed and gone on with."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ml100k_rows, write_dataset

from recbole_kd import machine, run_recbole_kd
from recbole_kd.benchmark import estimate, plan, records, runner, schedule, spec
from recbole_kd.benchmark import job as job_module
from recbole_kd.benchmark.check import check_jobs
from recbole_kd.benchmark.plan import Job
from recbole_kd.benchmark.progress import Progress
from recbole_kd.benchmark.records import Record
from recbole_kd.cli import main
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.errors import KDError
from recbole_kd.options import Sources, parse_arguments

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow.parquet")

DATA = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False}
OTHER_SPLIT = {"split": {"RS": [0.5, 0.2, 0.3]}}
METRIC = {"valid_metric": "NDCG@3"}
SMALL: dict[str, Any] = {
    "datasets": ["ml-100k"],
    "pairs": {"MF-MF": {"teacher": "BPR", "student": "BPR"}},
    "methods": ["Teacher", "Scratch", "RCEKD"],
    "seeds": [0, 1],
}


def write(folder: Path, **changes: Any) -> Path:
    """A benchmark's file; a change to ``None`` takes the key out."""
    said = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    (folder / "bench.yaml").write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    return folder / "bench.yaml"


# -- the file ----------------------------------------------------------------------------------


def test_rows_know_what_they_are(tmp_path: Path) -> None:
    union = {"name": "w/o sep", "method": "CE", "group": "ablation", "options": {"ce_K": 5}}
    plain = {"name": "BPR 8", "recbole": "BPR", "options": {"embedding_size": 8}, "seeds": [7]}
    methods = ["Teacher", "Scratch", "RCEKD", "LightGCN", union, plain]
    found = spec.read(write(tmp_path, methods=methods))
    assert [(r.name, r.kind, r.model, r.group) for r in found.rows] == [
        ("Teacher", "teacher", "", "main"),
        ("Scratch", "scratch", "", "main"),
        ("RCEKD", "distilled", "RCEKD", "main"),
        ("LightGCN", "reference", "LightGCN", "main"),
        ("w/o sep", "distilled", "CE", "ablation"),
        ("BPR 8", "reference", "BPR", "main"),
    ]
    assert (found.ours, found.rows[4].options, found.rows[5].seeds) == ("RCEKD", {"ce_K": 5}, (7,))
    assert found.threads * found.jobs <= (os.cpu_count() or 1)
    assert spec.read(write(tmp_path), jobs=3).jobs == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": None}, "datasets is missing"),
        ({"method": ["CE"]}, "no key method"),
        ({"methods": ["RCEKDD"]}, "Did you mean"),
        ({"methods": ["CE", "CE"]}, "CE twice"),
        ({"datasets": ["tiny", "tiny"]}, "datasets: found tiny twice"),
        ({"methods": "CE"}, "allowed is a list"),
        ({"methods": [{"method": "CE", "recbole": "BPR"}]}, "needed is one"),
        ({"methods": [{"recbole": "HSTU"}]}, "not one of RecBole's"),
        ({"methods": [{"method": "CE", "pairs": ["X"]}]}, "found X; allowed are MF-MF"),
        ({"methods": [{"method": "CE", "options": {"seed": 1}}]}, "found seed"),
        ({"methods": [{"method": "CE", "options": {"teacher": "BPR"}}]}, "a model for teacher"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"seeds": [-1]}, "whole numbers from 0"),
        ({"teacher_seed": "all"}, "teacher_seed: found 'all'; allowed are whole numbers"),
        ({"pairs": {"X": {"teacher": "BPR"}}}, "student is missing"),
        ({"pairs": ["X"]}, "allowed are 'name: ...' lines"),
        ({"ours": "Scratch"}, "ours: found Scratch; allowed are RCEKD"),
        ({"published": "nobody"}, "published: found nobody"),
        ({"jobs": 0}, "jobs: found 0"),
        ({"notes": "one"}, "notes: found 'one'; allowed is a list of texts"),
        ({"overrides": {"student.seed": 7}}, "found student.seed"),
        ({"methods": [{"name": "Teacher", "recbole": "BPR"}]}, "the name Teacher is the teacher's"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KDError) as error:
        spec.read(write(tmp_path, **changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# -- the plan ----------------------------------------------------------------------------------


def jobs_of(folder: Path, **changes: Any) -> list[Job]:
    return plan.jobs_of(spec.read(write(folder, **changes)), folder / "out")


def test_seeds_come_one_after_the_other_and_teachers_first(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, methods=["RCEKD", "Scratch", "Teacher"])
    assert [(j.seed, j.row) for j in jobs] == [
        *((0, "Teacher"), (0, "Scratch"), (0, "RCEKD")),
        *((1, "Teacher"), (1, "Scratch"), (1, "RCEKD")),
    ]
    for teacher, scratch, distilled in (jobs[:3], jobs[3:]):
        assert distilled.after == (teacher.training,)
        assert len({teacher.training, scratch.training, distilled.training}) == 3
        assert distilled.options["seed"] == distilled.seed


def test_a_teacher_nobody_asks_for_is_trained_once_for_those_who_need_it(tmp_path: Path) -> None:
    rows = ["CE", {"method": "RCEKD", "seeds": [0, 1, 2]}]
    jobs = jobs_of(tmp_path, methods=rows)
    assert [j.seed for j in jobs if j.kind == "teacher"] == [0, 1, 2]
    assert not jobs_of(tmp_path, methods=["BPR"])[0].after


def test_one_teacher_serves_those_who_read_its_way_and_those_who_do_not(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, methods=["Teacher", "RCEKD", "HetComp"], seeds=[0])
    assert {j.options["teacher"]["save_every"] for j in jobs} == {10}
    assert jobs[1].after == jobs[2].after == (jobs[0].training,)


def test_one_teacher_can_do_for_all_seeds(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, methods=["Teacher", "Scratch", "CE", "BPR"], teacher_seed=5)
    (teacher,) = {job.training for job in jobs if job.kind == "teacher"}
    distilled = [job for job in jobs if job.kind == "distilled"]
    assert [job.options["seed"] for job in distilled] == [0, 1]
    assert all(job.after == (teacher,) for job in distilled)
    assert "--teacher.seed=5" in distilled[1].command()
    others = [job for job in jobs if job.kind in ("scratch", "reference")]
    assert len({job.training for job in others}) == len(others) == 4


def test_a_teacher_in_a_file_needs_no_seed(tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"weights")
    pairs = {"P": {"teacher": str(tmp_path / "teacher.pth"), "student": "BPR"}}
    jobs = jobs_of(tmp_path, pairs=pairs, methods=["CE"], teacher_seed=5)
    assert not any("teacher.seed" in job.command() for job in jobs)


def test_a_part_of_the_runs_comes_with_the_teachers_it_needs(tmp_path: Path) -> None:
    pairs = {name: {"teacher": "BPR", "student": "BPR"} for name in ("one", "two")}
    jobs = jobs_of(tmp_path, pairs=pairs, methods=["Teacher", "Scratch", "CE"])

    def names(*part: list[str]) -> list[tuple[str, str, int]]:
        return [(job.pair, job.row, job.seed) for job in plan.select(jobs, *part)]

    assert names(["two"], ["CE"], ["1"]) == [("two", "Teacher", 1), ("two", "CE", 1)]
    jobs = jobs_of(tmp_path, pairs=pairs, methods=["Teacher", "Scratch", "CE"], teacher_seed=0)
    assert names(["two"], ["CE"], ["1"]) == [("two", "Teacher", 1), ("two", "CE", 1)]
    assert names([], ["Scratch"], ["0"]) == [("one", "Scratch", 0), ("two", "Scratch", 0)]
    assert plan.select(jobs) == jobs
    with pytest.raises(KDError, match=r"--methods: found 'RRD'; allowed are 'Teacher', 'Sc"):
        names([], ["RRD"])
    with pytest.raises(KDError, match=r"--seeds: found '7'; allowed are '0', '1'"):
        names([], [], ["7"])


def test_a_row_does_not_change_the_teacher_unasked(tmp_path: Path) -> None:
    plain = {"method": "CE", "options": {"learning_rate": 0.5}}
    with pytest.raises(KDError, match=r"row CE: found another.*learning_rate=0.5, not .*student\."):
        jobs_of(tmp_path, methods=["RCEKD", plain], seeds=[0])
    students = {"method": "CE", "options": {"student.learning_rate": 0.5}}
    jobs = jobs_of(tmp_path, methods=["RCEKD", students], seeds=[0])
    assert len({job.after for job in jobs if job.kind == "distilled"}) == 1


def test_a_row_with_a_teacher_of_its_own_does_not_wait(tmp_path: Path) -> None:
    own = {"method": "CE", "options": {"teacher.embedding_size": 9}}
    teacher, ours, other = jobs_of(tmp_path, methods=["RCEKD", own], seeds=[0])
    assert ours.after == (teacher.training,) != other.after


def test_options_win_in_order(tmp_path: Path) -> None:
    jobs = jobs_of(
        tmp_path,
        overrides={"epochs": 1, "learning_rate": 0.1, "student.embedding_size": 2},
        datasets={"ml-100k": {"learning_rate": 0.2, "train_batch_size": 64}},
        pairs={"P": {**SMALL["pairs"]["MF-MF"], "options": {"student.embedding_size": 3}}},
        methods=[{"method": "CE", "options": {"epochs": 4}}, {"recbole": "BPR"}],
        seeds=[0],
    )
    teacher, distilled, reference = jobs
    assert teacher.options["epochs"] == 4  # it is the teacher of that row
    chosen = ("epochs", "learning_rate", "train_batch_size")
    assert [distilled.options[key] for key in chosen] == [4, 0.2, 64]
    assert distilled.options["student"] == {"model": "BPR", "embedding_size": 3}
    assert [reference.options[key] for key in chosen] == [1, 0.2, 64]
    assert reference.options["student"] == {"model": "BPR"}


def test_a_command_makes_the_same_run(tmp_path: Path) -> None:
    job = jobs_of(tmp_path, overrides={"topk": [5, 10]}, methods=["CE"], seeds=[3])[1]
    program, command, *words = shlex.split(job.command())
    assert (program, command) == ("recbole-kd", "train")
    assert parse_arguments(words) == job.options


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ([{"method": "CE", "options": {"ce_KK": 3}}], "row CE.*: option 'ce_KK' is read by no"),
        ([{"method": "CE", "options": {"epochs": 0}}], "row CE: --epochs=0"),
        ([{"method": "CE", "options": {"ce_guide": "nobody"}}], "row CE.*: --ce_guide=nobody"),
        ([{"method": "CE", "options": {"ce_K": 10**6}}], "row CE.*: --ce_K=1000000"),
        ([{"recbole": "BPR", "options": {"n_layers": 2}}], "row BPR.*: option 'n_layers'"),
        ([{"recbole": "BPR", "options": {"eval_args": OTHER_SPLIT}}, "CE"], "another split than"),
        ([{"recbole": "BPR", "options": {"eval_step": 0}}], "row BPR.*: --eval_step=0"),
        (["CE", {"recbole": "SASRec"}], "row SASRec.*has to be 'TO'"),
    ],
)
def test_a_run_that_would_be_refused_stops_all_before_the_first(
    root: Path, tmp_path: Path, methods: list[Any], said: str
) -> None:
    data = {"overrides": {**DATA, "data_path": str(root)}, "datasets": ["tiny"], "seeds": [0]}
    with pytest.raises(KDError, match=said) as error:
        check_jobs(jobs_of(tmp_path, methods=methods, **data))
    assert "\n" not in str(error.value)


def test_the_metric_is_one_that_is_measured(root: Path, tmp_path: Path) -> None:
    data = {"overrides": {**DATA, "data_path": str(root)}, "datasets": ["tiny"], "seeds": [0]}
    jobs = jobs_of(tmp_path, methods=["BPR"], **data)
    check_jobs(jobs, "ndcg@10")
    with pytest.raises(KDError, match=r"metric=ndcg@3: found recall@10, .*; allowed is one"):
        check_jobs(jobs, "ndcg@3")
    assert plan.metric_of(jobs[0]) == "ndcg@10"


def test_reference_rows_have_the_split_of_their_pair(root: Path, tmp_path: Path) -> None:
    """RecBole splits its families differently: leave-one-out in time, and 8:1:1 at random."""
    jobs = jobs_of(
        tmp_path,
        datasets=["tiny"],
        overrides={**DATA, "data_path": str(root)},
        pairs={"P": {"teacher": "SASRec", "student": "BPR", "options": {"topk": [3], **METRIC}}},
        methods=["CE", "BPR", "GRU4Rec"],
        seeds=[0],
    )
    check_jobs(jobs)
    of = {job.row: job.options for job in jobs}
    assert of["BPR"]["eval_args"] == of["GRU4Rec"]["eval_args"]
    assert of["BPR"]["topk"] == [3]
    assert "LS" in of["BPR"]["eval_args"]["split"]


def test_a_method_is_no_option_of_a_reference(tmp_path: Path) -> None:
    pair = {**SMALL["pairs"]["MF-MF"], "options": {"kd_weight": 2, "train_batch_size": 64}}
    jobs = jobs_of(tmp_path, pairs={"P": pair}, methods=["CE", "BPR"], seeds=[0])
    assert jobs[-1].options["train_batch_size"] == 64
    assert "kd_weight" not in jobs[-1].options


# -- the schedule ------------------------------------------------------------------------------


def job(name: str, trains: str = "", after: tuple[str, ...] = ()) -> Job:
    return Job("d", "p", name, 0, "distilled", "main", "CE", {}, trains or name, after)


def test_a_job_waits_for_what_it_needs_and_for_its_twin() -> None:
    teacher, twin, other, student = job("t"), job("t2", "t"), job("o"), job("s", "", ("t",))
    plans = schedule.Schedule([teacher, twin, student, other])
    assert plans.take() is teacher
    assert plans.take() is other  # the twin trains the same, the student needs it
    plans.finish(teacher, schedule.DONE)
    assert plans.take() is twin
    plans.finish(twin, schedule.DONE)
    assert plans.take() is student
    assert plans.take() is None


def test_those_who_wait_are_woken() -> None:
    plans = schedule.Schedule([job("t"), job("s", "", ("t",))])
    first = plans.take()
    taken: list[Any] = []
    worker = threading.Thread(target=lambda: taken.append(plans.take()))
    worker.start()
    assert first is not None
    plans.finish(first, schedule.DONE)
    worker.join(10)
    assert [one.row for one in taken] == ["s"]


def test_what_needs_a_failed_job_is_never_run() -> None:
    teacher, student, other = job("t"), job("s", "", ("t",)), job("o")
    plans = schedule.Schedule([teacher, student, other])
    assert plans.take() is teacher
    assert plans.finish(teacher, schedule.FAILED) == [student]
    assert plans.take() is other
    assert plans.take() is None
    assert plans.states[student] == schedule.SKIPPED


def test_a_teacher_of_all_seeds_is_waited_for_once() -> None:
    jobs = [job("t0", "t"), job("t1", "t"), job("s0", "", ("t",)), job("s1", "", ("t",))]
    plans = schedule.Schedule(jobs, done=jobs[:1])
    assert plans.take() is jobs[1]
    assert plans.take() is jobs[2]  # not held up by the twin
    assert plans.finish(jobs[1], schedule.FAILED) == []  # the other twin has made it
    assert plans.take() is jobs[3]


def test_a_failed_teacher_is_given_up_when_no_twin_is_left() -> None:
    jobs = [job("t0", "t"), job("t1", "t"), job("s", "", ("t",))]
    plans = schedule.Schedule(jobs)
    assert plans.take() is jobs[0]
    assert plans.finish(jobs[0], schedule.FAILED) == []
    assert plans.take() is jobs[1]
    assert plans.finish(jobs[1], schedule.FAILED) == [jobs[2]]


# -- records -----------------------------------------------------------------------------------


def test_records_come_back_and_names_stay_apart(tmp_path: Path) -> None:
    files = set()
    for row in ("w/o S", "w_o S", "w%2Fo S", "..", "a/../b"):
        record = Record("d", "p", row, 3, "distilled", test_result={"ndcg@10": 0.1})
        file = records.file_of(tmp_path, "d", "p", row, 3)
        assert tmp_path / records.RECORDS / "d" / "p" in file.parents
        records.write(file, record)
        assert records.read(file) == record
        files.add(file)
    assert len(files) == 5 == len(list(records.read_all(tmp_path)))
    file.write_text("{", encoding="utf-8")
    with pytest.raises(KDError, match="no record of a run"):
        records.read(file)


# -- a real one --------------------------------------------------------------------------------

ROWS = [
    "Teacher",
    "Scratch",
    {"method": "RCEKD", "options": {"rcekd_K": 20, "rcekd_L": 20, "rcekd_M": 50}},
    {"name": "diverges", "method": "CE", "options": {"ce_K": 5, "student.learning_rate": 1.0e30}},
    {"name": "BPR, RecBole", "recbole": "BPR"},
]
LENGTH = 40


def real(root: Path) -> dict[str, Any]:
    more = {"data_path": str(root), "embedding_size": 8, "epochs": 3, "save_last_seconds": 0}
    return {
        "datasets": ["tiny"],
        "methods": ROWS,
        "notes": ["one of the rows fails"],
        "seeds": [1],
        "overrides": {**DATA, **more, "student.epochs": LENGTH, "stopping_step": LENGTH},
        "jobs": 2,
        "threads": 1,
    }


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def killed(folder: Path, out: Path) -> None:
    """Start the command, and kill it where its method has learnt a little."""
    words = [sys.executable, "-m", "recbole_kd", "benchmark", "bench.yaml", f"--out={out}"]
    with subprocess.Popen(
        words, cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 120
        log: list[Path] = []
        while time.monotonic() < until and process.poll() is None:
            log = list(out.glob("runs/tiny/RCEKD-*/metrics.jsonl"))
            if log and len(log[0].read_text().splitlines()) >= 3:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        while alive(process.pid) and time.monotonic() < until:
            time.sleep(0.05)
    assert log
    assert 3 <= len(log[0].read_text().splitlines()) < LENGTH
    assert not alive(process.pid)  # nobody outlives the runner


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A benchmark that was killed and gone on with; its folder, its data, its exit code."""
    folder = tmp_path_factory.mktemp("bench")
    root = write_dataset(tmp_path_factory.mktemp("data"), ml100k_rows())
    out = folder / "out"
    write(folder, **{**real(root), "methods": [ROWS[0], ROWS[2]]})
    killed(folder, out)
    file = write(folder, **real(root))
    for one in plan.jobs_of(spec.read(file), out):
        if one.kind in ("scratch", "reference"):  # here: a process takes seconds to start
            records.write(one.file(out), job_module.run(one, out))
    return out, root, main(["benchmark", str(file), f"--out={out}"])


def by_row(out: Path) -> dict[str, Record]:
    return {record.row: record for record in records.read_all(out)}


def test_what_was_half_done_goes_on_bit_for_bit(ran: Any, tmp_path: Path) -> None:
    out, _, _ = ran
    record = by_row(out)["RCEKD"]
    assert record.epochs == LENGTH
    given = {**record.options, "checkpoint_dir": str(tmp_path), "state": "WARNING"}
    straight = run_recbole_kd(config_dict=given)
    assert straight["test_result"] == record.test_result
    assert straight["best_valid_result"] == record.valid_result
    folder = Path(straight["checkpoints"]["student"]).parent
    rows = [pandas.read_parquet(f / "per_user.parquet") for f in (folder, out / str(record.folder))]
    pandas.testing.assert_frame_equal(*rows)


def test_each_run_has_a_folder_with_everything(ran: Any) -> None:
    out, _, _ = ran
    found = by_row(out)
    assert {name: r.status for name, r in found.items()} == {
        **dict.fromkeys(("Teacher", "Scratch", "RCEKD", "BPR, RecBole"), "done"),
        "diverges": "failed",
    }
    for record in found.values():
        if record.status != "done":
            continue
        folder = out / str(record.folder)
        wanted = ("resolved.yaml", "metrics.jsonl", "per_user.parquet", "per_item.parquet")
        for name in (*wanted, "best.pt", "result.json", "summary.json"):
            assert (folder / name).is_file(), (record.row, name)
        result = json.loads((folder / "result.json").read_text())
        assert record.test_result == result["test_result"]
        assert (record.epochs, record.best_epoch) == (result["epochs"], result["best_epoch"])
        assert record.parameters == found["BPR, RecBole"].parameters
        assert record.seconds
        assert record.provenance["split"] == found["Teacher"].provenance["split"]
        assert record.provenance["source"] == machine.source()
        rows = pandas.read_parquet(folder / "per_user.parquet")
        assert abs(rows["ndcg@10"].mean() - record.test_result["ndcg@10"]) < 1e-6
    assert len(found["Teacher"].valid_result) == 4


def test_a_failed_run_says_why_and_the_exit_code_says_that_one_failed(ran: Any) -> None:
    out, _, code = ran
    assert code == 1
    record = by_row(out)["diverges"]
    assert "training stopped: the loss is" in record.error
    log = records.file_of(out, "tiny", "MF-MF", "diverges", 1).with_suffix(".log")
    assert "training stopped" in log.read_text(encoding="utf-8")


def test_the_report_finds_the_file(ran: Any) -> None:
    out, _, _ = ran
    said = yaml.safe_load((out / records.SPEC_FILE).read_text(encoding="utf-8"))
    assert said["command"].startswith("recbole-kd benchmark ")
    assert [row["name"] for row in said["rows"]] == [
        *("Teacher", "Scratch", "RCEKD", "diverges", "BPR, RecBole")
    ]
    assert said["pairs"]["MF-MF"]["teacher"] == "BPR"
    assert said["notes"] == ["one of the rows fails"]


def test_what_is_done_is_not_done_again(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, root, _ = ran
    asked = spec.read(write(out.parent, **{**real(root), "methods": ROWS[:3]}))
    started: list[Job] = []
    monkeypatch.setattr(runner.Runner, "_run", lambda self, job: started.append(job) or "")
    assert runner.run_benchmark(asked, out) == 0
    assert not started


def test_the_command_makes_a_part_of_the_runs(
    ran: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root, _ = ran
    file = write(tmp_path, **{**real(root), "seeds": [1, 2]})
    started: list[tuple[str, int]] = []
    monkeypatch.setattr(
        runner.Runner, "_run", lambda self, job: started.append((job.row, job.seed)) or ""
    )
    out = tmp_path / "out"
    words = ["benchmark", str(file), f"--out={out}"]
    others = records.file_of(out, "tiny", "MF-MF", "diverges", 1)
    records.write(others, Record("tiny", "MF-MF", "diverges", 1, "distilled", status="failed"))
    assert main([*words, "--methods=Scratch,RCEKD", "--seeds=2"]) == 0
    assert sorted(started) == [("RCEKD", 2), ("Scratch", 2), ("Teacher", 2)]
    started.clear()
    for name in ("BPR, RecBole", "['BPR, RecBole']"):
        assert main([*words, f"--methods={name}", "--seeds=[1]"]) == 0
    assert started == [("BPR, RecBole", 1)] * 2
    assert others.is_file()
    for empty in ("--seeds=", "--methods=[]", "--pairs=None", "--methods=CE,"):
        assert main([*words, empty]) == 2
    said = yaml.safe_load((out / records.SPEC_FILE).read_text(encoding="utf-8"))
    assert "--methods" not in said["command"]
    assert said["seeds"] == [1, 2]


def test_results_of_data_that_have_changed_are_made_again(ran: Any) -> None:
    out, _, _ = ran
    jobs = plan.jobs_of(spec.read(out.parent / "bench.yaml"), out)
    splits = check_jobs(jobs)
    names = {job.row for job in jobs if runner.finished(job, out, splits)}
    assert names >= {"Teacher", "Scratch", "RCEKD"}
    for part in ("train", "valid", "test", "ids"):
        changed = {place: {**prints, part: "other"} for place, prints in splits.items()}
        assert not any(runner.finished(job, out, changed) for job in jobs)


def test_results_of_times_that_have_changed_are_made_again(ran: Any) -> None:
    """Where a model of the run reads them: the record says which they were."""
    out, _, _ = ran
    jobs = plan.jobs_of(spec.read(out.parent / "bench.yaml"), out)
    (job,) = (job for job in jobs if (job.row, job.seed) == ("Scratch", jobs[0].seed))
    splits = check_jobs(jobs)
    place = job.dataset, job.pair, job.row
    before = job.file(out).read_text(encoding="utf-8")
    try:
        for said, now, same in (("a", "a", True), ("a", "b", False), (None, "b", True)):
            content = json.loads(before)
            content["provenance"].update({} if said is None else {"times": said})
            job.file(out).write_text(json.dumps(content), encoding="utf-8")
            changed = {**splits, place: {**splits[place], "times": now}}
            assert runner.finished(job, out, changed) == same
    finally:
        job.file(out).write_text(before, encoding="utf-8")


def test_a_teachers_temperature_tells_runs_apart(tmp_path: Path) -> None:
    options = {"teacher.score_temperature": 0.1}
    pairs = {"P": {"teacher": "NeuMF", "student": "BPR"}}
    jobs = jobs_of(
        tmp_path,
        methods=["CE", {"method": "CE", "name": "sharp", "options": options}],
        pairs=pairs,
        seeds=[0],
    )
    teacher, plain, sharp = jobs
    assert plain.training != sharp.training
    assert plain.after == sharp.after == (teacher.training,)


def test_a_temperature_is_a_number_however_it_is_written(tmp_path: Path) -> None:
    def trained(temperature: object) -> str:
        pairs = {"P": {"teacher": "NeuMF", "student": "BPR"}}
        options = {"teacher.score_temperature": temperature}
        rows = [{"method": "CE", "options": options}]
        return jobs_of(tmp_path, methods=rows, pairs=pairs, seeds=[0])[-1].training

    assert trained(1) == trained(1.0) != trained(2)
    with pytest.raises(KDError, match=r"score_temperature=warm: allowed are numbers above 0"):
        trained("warm")


def test_a_recipe_with_another_teacher_is_named(tmp_path: Path) -> None:
    """The teacher of LightGCN -> MF is in the recipe of RCE-KD on CiteULike; UnKD has none."""
    pairs = {"P": {"teacher": "LightGCN", "student": "BPR"}}
    with pytest.raises(KDError, match=r"row UnKD: found another teacher.*=.*, not "):
        jobs_of(tmp_path, methods=["RCEKD", "UnKD"], pairs=pairs, seeds=[0], datasets=["citeulike"])
    with pytest.raises(KDError, match=r"row CE: .*\(split_seed=7, not 2020\)"):
        jobs_of(tmp_path, methods=["RCEKD", {"method": "CE", "options": {"split_seed": 7}}])


def test_a_metric_that_is_no_number_is_a_failed_run(ran: Any, tmp_path: Path) -> None:
    out, _, _ = ran
    jobs = plan.jobs_of(spec.read(out.parent / "bench.yaml"), out)
    (job,) = (job for job in jobs if job.row == "Scratch")
    record = by_row(out)["Scratch"]
    folder = tmp_path / "runs"
    folder.mkdir()
    found = json.loads((out / str(record.folder) / "result.json").read_text(encoding="utf-8"))
    found["test_result"]["ndcg@10"] = float("nan")
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")
    split = load_split(KDConfig(Sources.collect(options=job.options), "scratch"))
    with pytest.raises(KDError, match=r"found ndcg@10 = nan in the test; allowed are finite"):
        job_module._record(job, tmp_path, folder, {}, None, split, split.fingerprints)


def test_the_most_epochs_are_those_of_what_a_job_trains(tmp_path: Path) -> None:
    pairs = {"MF-MF": {"teacher": "BPR", "student": "BPR", "options": {"teacher.epochs": 5}}}
    jobs = jobs_of(tmp_path, methods=["Teacher", "RCEKD"], pairs=pairs, seeds=[0])
    most = {job.row: estimate._most(job) for job in jobs}
    assert most["Teacher"] == 5 < most["RCEKD"]


def test_a_dry_run_knows_what_is_left_and_how_long_it_takes(ran: Any) -> None:
    out, root, _ = ran
    asked = spec.read(write(out.parent, **{**real(root), "seeds": [1, 2]}))
    text = estimate.dry_run(plan.jobs_of(asked, out), asked, out)
    lines = [line for line in text.splitlines() if "RCEKD" in line]
    assert ["done" in line for line in lines] == [True, False]
    assert "10 runs, 6 to do" in text
    assert "2 runs without an estimate" in text  # the row that fails
    assert not list(out.glob("records/tiny/*/*/seed-2.json"))


def test_an_estimate_counts_a_training_once(tmp_path: Path, root: Path) -> None:
    data = {"overrides": {**DATA, "data_path": str(root)}, "datasets": ["tiny"]}
    path = write(tmp_path, **data, methods=["Teacher", "CE"], seeds=[0, 1, 2], teacher_seed=0)
    asked = spec.read(path)
    jobs, out = plan.jobs_of(asked, tmp_path / "out"), tmp_path / "out"
    job = next(job for job in jobs if job.kind == "teacher")
    made = Record(job.dataset, job.pair, job.row, job.seed, job.kind, training=job.training)
    made.options, made.seconds = job.options, 3600.0
    records.write(job.file(out), made)
    lines = [ln for ln in estimate.dry_run(jobs, asked, out).splitlines() if "Teacher" in ln]
    assert [line.split("|")[-2].strip() for line in lines] == ["60.2", "0.2", "0.2"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL (out of memory?)"),
        ("import sys; sys.exit('no such luck')", "exit code 1: no such luck"),
    ],
)
def test_a_process_that_dies_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    real, jobs = subprocess.Popen, [job("a"), job("b"), job("c", "", ("a",))]
    monkeypatch.setattr(
        runner.subprocess, "Popen", lambda words, **how: real([sys.executable, "-c", code], **how)
    )
    progress = Progress(jobs, [], live=False)
    runner.Runner(jobs, [], tmp_path, progress).run(2)
    assert progress.failures == {
        **dict.fromkeys(jobs[:2], said),
        jobs[2]: "not run: a of seed 0 failed, which it needs",
    }
    assert {r.row: r.error for r in records.read_all(tmp_path)} == {
        one.row: error for one, error in progress.failures.items()
    }
    assert not progress.ended_well


def test_trouble_of_the_runner_itself_fails_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, one: Job) -> str:
        if one.row == "a":
            raise OSError(28, "No space left on device")
        return ""

    monkeypatch.setattr(runner.Runner, "_run", full)
    jobs = [job("a"), job("b"), job("c", "", ("a",)), job("d")]
    progress = Progress(jobs, [], live=False)
    runner.Runner(jobs, [], tmp_path, progress).run(2)
    assert set(progress.finished) == {jobs[1], jobs[3]}
    assert "No space left" in progress.failures[jobs[0]]
    assert not progress.ended_well


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_starts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    code = "import time; print('here', flush=True); time.sleep(60)"
    real, jobs = subprocess.Popen, [job(name) for name in "abcd"]
    monkeypatch.setattr(
        runner.subprocess, "Popen", lambda words, **how: real([sys.executable, "-c", code], **how)
    )
    progress = Progress(jobs, [], live=False)
    monkeypatch.setattr(progress, "said", lambda one, text: os.kill(os.getpid(), number))
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.Runner(jobs, [], tmp_path, progress).run(2)
    assert time.monotonic() - begun < 30
    assert not progress.failures
    assert not list(records.read_all(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_teacher_in_a_file_has_its_rankings_too(ran: Any, tmp_path: Path) -> None:
    out, root, _ = ran
    teacher = out / str(by_row(out)["Teacher"].folder)
    more = {"data_path": str(root), "embedding_size": 8, "epochs": 1, "ce_K": 10}
    (one,) = jobs_of(
        tmp_path,
        datasets=["tiny"],
        overrides={**DATA, "data_path": str(root)},
        pairs={"P": {"teacher": str(teacher), "student": "BPR", "options": more}},
        methods=["Teacher", {"method": "CE", "datasets": ["tiny"]}],
        seeds=[1],
    )[:1]
    record = job_module.run(one, tmp_path / "out")
    found = by_row(out)["Teacher"]
    assert record.test_result == pytest.approx(found.test_result, abs=1e-6)
    rows = pandas.read_parquet(tmp_path / "out" / str(record.folder) / "per_user.parquet")
    assert abs(rows["ndcg@10"].mean() - record.test_result["ndcg@10"]) < 1e-6


def test_a_reference_is_measured_anew_for_other_metrics(ran: Any, tmp_path: Path) -> None:
    out, root, _ = ran
    more = {**real(root)["overrides"], "topk": [7], "valid_metric": "NDCG@7"}
    asked = {**real(root), "methods": ROWS[-1:], "overrides": {**more, "valid_metric": "NDCG@7"}}
    (one,) = plan.jobs_of(spec.read(write(tmp_path, **asked)), out)
    assert set(job_module.run(one, out).test_result) == {"recall@7", "ndcg@7"}
    again = job_module.run(one, out)
    assert set(again.test_result) == {"recall@7", "ndcg@7"}


def test_records_made_with_other_options_are_gone_at_once(
    ran: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root, _ = ran
    copy = tmp_path / "out"
    shutil.copytree(out / records.RECORDS, copy / records.RECORDS)
    (copy / records.RUNS).symlink_to((out / records.RUNS).resolve())
    longer = {**real(root)["overrides"], "student.epochs": LENGTH + 1}
    asked = spec.read(write(tmp_path, **{**real(root), "methods": ROWS[:3], "overrides": longer}))
    monkeypatch.setattr(runner.Runner, "run", lambda self, jobs: None)  # stopped at once
    runner.run_benchmark(asked, copy)
    assert not {"Teacher", "Scratch", "RCEKD"} & set(by_row(copy))


def test_checkpoints_are_not_needed_to_go_on(
    ran: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root, _ = ran
    kept = tmp_path / "kept"
    shutil.copytree(out, kept, ignore=shutil.ignore_patterns("*.pt", "tensorboard"))
    new = {"method": "CE", "options": {"ce_K": 10, "student.epochs": 2}}
    asked = spec.read(write(tmp_path, **{**real(root), "methods": [*ROWS[:3], new]}))
    started: list[Job] = []
    monkeypatch.setattr(runner.Runner, "_run", lambda self, job: started.append(job) or "")
    runner.run_benchmark(asked, kept)
    assert [job.row for job in started] == ["CE"]
    before = by_row(kept)["Teacher"]
    job_module.run(started[0], kept)  # trains the teacher again
    teacher = json.loads((kept / str(before.folder) / "result.json").read_text(encoding="utf-8"))
    assert teacher["test_result"] == before.test_result
    assert (kept / str(before.folder) / "best.pt").is_file()


def test_two_at_a_time_are_refused(ran: Any) -> None:
    out, root, _ = ran
    asked = spec.read(write(out.parent, **real(root)))
    with runner.FileLock(out / ".lock"), pytest.raises(KDError, match="another process runs this"):
        runner.run_benchmark(asked, out)
