"""The command line: one line for every mistake, and each command end to end."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ml100k_rows, write_dataset, write_inter, write_parts

from recbole_kd import __version__, run_recbole_kd
from recbole_kd.cli import main

SCRIPT = Path(__file__).resolve().parents[1] / "run_recbole_kd.py"
QUIET = ["--epochs=1", "--train_batch_size=512", "--show_progress=False", "--state=WARNING"]
SIZES = ["--student.embedding_size=4", "--teacher.embedding_size=8"]
LISTS = ["--rcekd_K=10", "--rcekd_L=10", "--rcekd_M=30"]
PARTS = "--benchmark_filename=[train,valid,test]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets: ``tiny``, its tokens renamed as ``other``, broken ones and ready-made splits."""
    root = tmp_path_factory.mktemp("data")
    rows = ml100k_rows(users=60)
    write_dataset(root, rows)
    write_dataset(root, [(f"x{u}", f"x{i}", t) for u, i, t in rows], "other")
    write_dataset(root, [(f"u{u}", f"i{i}", float(i)) for u in range(9) for i in range(9)], "few")
    (root / "void").mkdir()
    (root / "nameless").mkdir()
    (root / "nameless" / "nameless.inter").write_text("user:token\titem_id:token\n1\t2\n")
    write_parts(root, [rows[::2], rows[1::4], rows[3::4]], "split")
    stranger = [("stranger", rows[0][1], 1.0)]
    write_parts(root, [rows[::2], rows[1::4], rows[3::4] + stranger], "strangers")
    write_parts(root, [[], rows[1::4], rows[3::4]], "trainless")
    write_inter(root / "two" / "two.train.inter", rows[::2])
    write_inter(root / "two" / "two.test.inter", rows[1::2])
    return root


@pytest.fixture(scope="module")
def teacher(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPR trained on ``tiny``."""
    saved = tmp_path_factory.mktemp("teacher")
    options = {"data_path": str(root), "checkpoint_dir": str(saved), "epochs": 1, "state": "ERROR"}
    options.update({"show_progress": False, "embedding_size": 8, "train_batch_size": 512})
    result = run_recbole_kd("Scratch", "tiny", config_dict=options, student="BPR")
    return Path(result["checkpoints"]["student"])


class Command:
    """Runs ``recbole-kd train`` in this process, on ``tiny`` unless told otherwise."""

    def __init__(self, root: Path, saved: Path, capsys: pytest.CaptureFixture[str]):
        self.root, self.saved, self.capsys = root, saved, capsys

    def __call__(self, *more: str) -> tuple[int, str, str]:
        said = {a.partition("=")[0] for a in more}
        defaults = [
            "--model=RCEKD",
            "--student=BPR",
            "--teacher=BPR",
            "--dataset=tiny",
            f"--data_path={self.root}",
            f"--checkpoint_dir={self.saved}",
            *LISTS,
            *QUIET,
        ]
        words = [*(a for a in defaults if a.partition("=")[0] not in said), *more]
        self.capsys.readouterr()
        code = main(["train", *(w for w in words if w != "--teacher=")])
        return code, *self.capsys.readouterr()

    def refused(self, *more: str) -> str:
        """The one line on stderr; nothing may be trained or written before it."""
        code, out, err = self(*more)
        assert code == 2, (out, err)
        assert out == ""
        assert err.startswith("recbole-kd: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert [p for p in self.saved.rglob("*") if p.is_file()] == []
        return err


@pytest.fixture
def command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(root, tmp_path / "saved", capsys)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model=RCEDK"], ["--model=RCEDK", "'RCEKD'", "Known: CD, CE, "]),
        (["--model=BPR"], ["--model=BPR", "--student"]),
        (["--student=BRP"], ["--student=BRP", "'BPR'"]),
        (["--teacher=LightGNC"], ["--teacher=LightGNC", "'LightGCN'"]),
        (["--student=RCEKD"], ["--student=RCEKD", "distillation method", "--model"]),
        (["--dataset=tinny"], ["--dataset=tinny", "'tiny'", "--data_path"]),
        (["--rcekd_K=31"], ["--rcekd_K=31", "rcekd_M=30"]),
        (["--rcekd_L=31"], ["--rcekd_L=31", "rcekd_M=30"]),
        (["--rcekd_M=151"], ["--rcekd_M=151", "150 items", "up to 150"]),
        (["--rcekd_M=150", "--rcekd_mask_train"], ["--rcekd_M=150", "in the train split"]),
        (["--kd_weight=-1"], ["--kd_weight=-1", "numbers from 0"]),
        (["--kd_weight=much"], ["--kd_weight=much"]),
        (["--kd_weight=.nan"], ["--kd_weight=nan"]),
        (["--refresh_every=0"], ["--refresh_every=0", "above 0"]),
        (["--kd_rows=foo"], ["--kd_rows=foo", "interaction, unique, user"]),
        (["--rcekd_tau=0"], ["--rcekd_tau=0"]),
        (["--rcekd_const=1.5"], ["--rcekd_const=1.5", "0 to 1"]),
        (["--rcekd_K=1.5"], ["--rcekd_K=1.5", "whole numbers"]),
        (["--dataset=void"], ["data set void", "void.inter is missing", "no file"]),
        (["--dataset=split"], ["split.inter is missing", "--benchmark_filename"]),
        (["--dataset=nameless"], ["nameless.inter line 1", "user, item_id", "user_id"]),
        (["--dataset=two", "--benchmark_filename=[train,test]"], ["three file parts"]),
        (["--dataset=two", PARTS], ["two.valid.inter is missing", "two.train.inter"]),
        (["--dataset=strangers", PARTS], ["1 evaluated users", "'stranger'", "--empty_users=keep"]),
        (["--dataset=trainless", PARTS], ["trainless", "train"]),
        (["--dataset=few", "--topk=[10]"], ["--topk=[10]", "9 items"]),
        (["--nproc=2"], ["--nproc=2", "not supported"]),
        (["--world_size=2"], ["--world_size=2"]),
        (["--epochs=2", "--epochs=3"], ["--epochs is given twice", "'2'", "'3'"]),
        (["--student=BPR", "--student=NeuMF"], ["--student is given twice"]),
        (["--student=NeuMF"], ["--student=NeuMF", "BPR, GRU4Rec, HSTU, LightGCN, SASRec"]),
        (["--student=FM"], ["--student=FM", "context model"]),
        (["--teacher=CKE"], ["--teacher=CKE", "knowledge model", "general and sequential"]),
        (["-m"], ["--model needs a value"]),
        (["-d", "--seed=1"], ["--dataset needs a value"]),
        (["epochs=3"], ["'epochs=3'"]),
        (["--kd_wieght=1"], ["'kd_wieght'", "'kd_weight'"]),
        (["--state=LOUD"], ["--state=LOUD"]),
        (["--protocol=rckd"], ["--protocol=rckd", "rcekd"]),
        (["--teacher="], ["--teacher is missing", "--teacher.checkpoint"]),
        (["--student.embedding_size=0"], ["--student.embedding_size=0"]),
        (["--teacher.learning_rate=x"], ["--teacher.learning_rate=x"]),
    ],
)
def test_one_line_for_a_mistake(command: Command, words: list[str], parts: list[str]) -> None:
    line = command.refused(*words)
    assert [p for p in parts if p not in line] == []


def test_evaluated_users_without_train_interactions_can_be_kept(command: Command) -> None:
    kept = ["--dataset=strangers", PARTS, "--empty_users=keep", "--scratch=False", *SIZES]
    assert command(*kept)[0] == 0


def test_the_result_says_what_was_ranked_whatever_is_logged(command: Command) -> None:
    code, out, err = command("--epochs=1", "--state=ERROR")
    assert code == 0, err
    assert "student, RCEKD" in out
    assert "eval_history all" in out


@pytest.mark.parametrize("command_name", ["-h", "--help"])
def test_help(capsys: pytest.CaptureFixture[str], command_name: str) -> None:
    for words in ([], [command_name], ["train", command_name]):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert "recbole-kd train --model=RCEKD --student=BPR" in out
        assert err == ""


@pytest.mark.parametrize(
    ("words", "where", "said"),
    [
        (["train"], "recbole_kd.quick_start.run_recbole_kd", "stopped; --resume=auto goes on"),
        (["tune"], "recbole_kd.tuning.tune", "stopped; the same command goes on"),
        (["pairs"], "recbole_kd.cli._say", "stopped"),
    ],
)
def test_stopped_by_hand(
    words: list[str],
    where: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    assert main(words) == 130
    found = capsys.readouterr().err
    assert found.startswith(f"recbole-kd: {said}")
    assert found.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-kd {__version__}\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["trian"],
            ["'trian' is no command", "'train'", "export, teacher-scores, report, pairs, doctor"],
        ),
        (["--model=RCEKD"], ["'--model=RCEKD' is no command"]),
        (["train"], ["--dataset is missing"]),
        (["train", "-d", "tiny"], ["--student is missing"]),
        (["convert", "lightgcn"], ["found 1 of the arguments", "citeulike", "lightgcn"]),
        (["convert", "lightgnc", "a", "b"], ["lightgnc"]),
        (["convert", "lightgcn", "a", "b", "--out=c"], ["unknown option 'out'", "overwrite"]),
        (["export"], ["found 0 of the arguments", "<checkpoint> <student.pth>"]),
        (["export", "a", "b.pth", "--force"], ["no option --force", "Allowed are none"]),
        (["export", "nowhere", "b.pth"], ["nowhere"]),
    ],
)
def test_mistakes_in_commands(
    capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert [p for p in ["recbole-kd: ", *parts] if p not in err] == []


def test_configuration_files(command: Command, tmp_path: Path) -> None:
    broken = tmp_path / "mine.yaml"
    broken.write_text("epochs: 1\nseed: [1\nmore: 2\n")
    line = command.refused(f"--config_files={broken}")
    assert f"{broken} line 3" in line
    line = command.refused("--config_files=good.yaml nowhere.yaml")
    assert "good.yaml: No such file" in line
    fine, wrong = tmp_path / "fine.yaml", tmp_path / "wrong.yaml"
    fine.write_text("seed: 3\n")
    wrong.write_text("student: {epohcs: 3}\n")
    assert f"file {wrong}: option 'student.epohcs'" in command.refused(
        f"--config_files={fine} {wrong}"
    )


def test_a_teacher_of_other_data(command: Command, teacher: Path) -> None:
    line = command.refused("--dataset=other", "--teacher=", f"--teacher.checkpoint={teacher}")
    assert f"{teacher} knows 0.0% of the student's users" in line
    assert "min_token_overlap=0.5" in line


def test_a_teacher_of_another_split(command: Command, teacher: Path) -> None:
    line = command.refused("--split_seed=5", "--teacher=", f"--teacher.checkpoint={teacher}")
    assert "was trained on" in line
    assert "--allow_leak" in line


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "other", "noise"])
def test_damaged_teachers(command: Command, teacher: Path, tmp_path: Path, damage: str) -> None:
    path, whole = tmp_path / "teacher.pt", teacher.read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "noise": whole[:200] + bytes(64) + whole[264:],
    }
    if damage in content:
        path.write_bytes(content[damage])
    elif damage == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    line = command.refused("--teacher=", f"--teacher.checkpoint={path}")
    assert f"checkpoint {path}" in line


def test_options_of_a_checkpoint_teacher(command: Command, teacher: Path) -> None:
    line = command.refused(
        "--teacher=", f"--teacher.checkpoint={teacher}", "--teacher.embedding_size=8"
    )
    assert "'teacher.embedding_size'" in line
    assert "The checkpoint brings" in line


def test_a_folder_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = command.refused(f"--checkpoint_dir={tmp_path}/file/saved")
    assert f"{tmp_path}/file/saved" in line
    assert "Not a directory" in line


def test_a_missing_run_to_resume(command: Command) -> None:
    code, out, err = command("--resume=missing.pt", *SIZES)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("recbole-kd: --resume=missing.pt")


def test_the_traceback_is_there_for_who_asks(
    command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        line = command.refused("--dataset=two", PARTS, "--state=DEBUG")
    assert "Traceback" not in line
    assert "Traceback" in caplog.text


# -- what works --------------------------------------------------------------------------------


def test_a_run_prints_its_table(command: Command, caplog: pytest.LogCaptureFixture) -> None:
    code, out, err = command("--state=INFO", *SIZES)
    assert (code, err) == (0, "")
    roles = ["teacher", "student, from scratch", "student, RCEKD"]
    lines = [x for x in out.splitlines() if x.startswith(tuple(f"| {r} " for r in roles))]
    assert len(lines) == 3
    folders = sorted(p.name.rpartition("-")[0] for p in (command.saved / "tiny").iterdir())
    assert folders == ["BPR", "BPR", "RCEKD-BPR-BPR"]
    assert "rcekd_K: 10  (default 100; command line)" in caplog.text


def test_a_run_teaches_from_a_checkpoint(command: Command, teacher: Path) -> None:
    words = ["--teacher=", f"--teacher.checkpoint={teacher.parent}", "--scratch=False", *SIZES[:1]]
    assert command(*words)[0] == 0
    assert [p.name.rpartition("-")[0] for p in (command.saved / "tiny").iterdir()] == [
        "RCEKD-BPR-BPR"
    ]


def test_export(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "student.pth"
    assert main(["export", str(teacher.parent), str(target)]) == 0
    assert capsys.readouterr().out == f"written {target}\n"
    ours = torch.load(teacher, weights_only=True)["state_dict"]
    theirs = torch.load(io.BytesIO(target.read_bytes()), weights_only=False)["state_dict"]
    assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in theirs.items()}


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = tmp_path / "raw", tmp_path / "made"
    raw.mkdir()
    items = " ".join(str(i) for i in range(20))
    (raw / "train.txt").write_text(f"0 {items}\n1 {items}\n")
    (raw / "test.txt").write_text("0 20\n1 21\n")
    assert main(["convert", "lightgcn", str(raw), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert sorted(p.name for p in out.glob("*.inter")) == [
        f"made.{part}.inter" for part in ("test", "train", "valid")
    ]
    assert main(["convert", "lightgcn", str(raw), str(out), "--no_such_option=1"]) == 2
    assert "no_such_option" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole_kd import compat

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "No problems found" in text
    assert [s.name for s in compat.SHIMS if s.name not in text] == []
    assert [name for name in compat.REQUIREMENTS if name not in text] == []
    monkeypatch.setattr(compat, "version_problems", lambda: ["pandas 3.0.1 is installed"])
    assert main(["doctor"]) == 1
    assert "  pandas 3.0.1 is installed" in capsys.readouterr().out


# -- as a process ------------------------------------------------------------------------------


def process(cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_script_from_another_folder_on_ml100k(tmp_path: Path) -> None:
    words = ["-m", "RCEKD", "--student", "BPR", "--teacher=BPR", "-d", "ml-100k"]
    sizes = ["--student.embedding_size=4", "--teacher.embedding_size=8", "--scratch=False"]
    run = process(tmp_path, str(SCRIPT), *words, *sizes, "--epochs=1", "--show_progress=False")
    assert run.returncode == 0, run.stderr
    assert "| teacher        | BPR " in run.stdout
    assert "| student, RCEKD | BPR " in run.stdout
    assert run.stdout.count("ndcg@10 / teacher") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_the_module_refuses_in_one_line(tmp_path: Path) -> None:
    """Logging of a real process goes to stderr too: the line is the last of it."""
    words = ["--student=BPR", "--teacher=BPR", "--dataset=nowhere"]
    run = process(tmp_path, "-m", "recbole_kd", "train", *words)
    assert run.returncode == 2
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert lines[-1].startswith("recbole-kd: --dataset=nowhere")
    assert len([x for x in lines if x.startswith("recbole-kd: ")]) == 1
    assert "Traceback" not in run.stderr
