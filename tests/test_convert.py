"""The converters: every format, every refusal, and the public data sets where they are at hand."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_kd.cli import USAGE
from recbole_kd.convert import FORMATS, ConversionResult, convert
from recbole_kd.errors import KDError

Row = tuple[str, ...]
PARTS = ("train", "valid", "test")


def shared_data(name: str) -> Path:
    """Find raw data of a public set, or skip the test."""
    given = os.environ.get("RECBOLE_KD_SHARED")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared"
    path = root / "data" / name
    if not path.exists():
        pytest.skip(f"no raw data at {path}; set RECBOLE_KD_SHARED to the folder that holds data/")
    return path


def read_inter(path: Path) -> tuple[list[str], list[Row]]:
    """Read an atomic file without the code under test."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return header.split("\t"), [tuple(line.split("\t")) for line in lines]


def rows(result: ConversionResult, part: str = "") -> list[Row]:
    """The rows of one part."""
    name = f"{result.name}.{part}.inter" if part else f"{result.name}.inter"
    return read_inter(result.out / name)[1]


def pairs(table: Iterable[Row]) -> set[Row]:
    """The (user, item) pairs of a table."""
    return {row[:2] for row in table}


def lists(table: Iterable[Row]) -> dict[str, list[str]]:
    """Item list of each user, in the order of the third column."""
    by_user: dict[str, list[tuple[int, str]]] = {}
    for user, item, position in table:
        by_user.setdefault(user, []).append((int(position), item))
    return {user: [item for _, item in sorted(items)] for user, items in by_user.items()}


def config_of(result: ConversionResult) -> dict[str, object]:
    """The written configuration."""
    loaded = yaml.safe_load(result.config_file.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def assert_kd_error(contains: Iterable[object], *args: object, **options: object) -> None:
    """Check that convert refuses in one line that contains the given texts."""
    with pytest.raises(KDError) as caught:
        convert(*args, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for text in contains:
        assert str(text) in message


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder that does not exist."""
    return tmp_path / "made" / "tiny"


@pytest.fixture
def users_dat(tmp_path: Path) -> Path:
    """Three users of whom the first is too short; raw ids have gaps."""
    path = tmp_path / "raw" / "users.dat"
    path.parent.mkdir()
    path.write_text("2 7 9\n5 10 20 30 40 50\n6 9 50 60 10 70 25\n", encoding="utf-8")
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A ready-made split with the header USER, ITEM."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for part, text in zip(
        PARTS, ("0\ta\n0\tb\n1\ta\n", "0\tc\n", "0\td\n1\tc\n1\tb\n"), strict=True
    ):
        (folder / f"{part}.txt").write_text("USER\tITEM\n" + text, encoding="utf-8")
    return folder


@pytest.fixture
def lightgcn(tmp_path: Path) -> Path:
    """Train plain, test gzip; user 2 has no train item."""
    folder = tmp_path / "raw"
    folder.mkdir()
    train = ["0 " + " ".join(str(k) for k in range(20)), "1 3 1 4", "2", "3 5"]
    (folder / "train.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
    test = b"0 30 31\n1 5\n2 1\n3 6\n"
    (folder / "test.txt.gz").write_bytes(gzip.compress(test))
    return folder


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """Two ordered sequences; user a meets x twice."""
    path = tmp_path / "raw.txt"
    path.write_text("a x y x\nb z\n", encoding="utf-8")
    return path


class TestCiteulike:
    def test_splits_in_list_order(self, users_dat: Path, out: Path) -> None:
        result = convert("citeulike", users_dat, out)
        # raw ids of the kept users: 9 10 20 25 30 40 50 60 70 -> 0 .. 8
        expected = {"0": ["1", "2", "4", "5", "6"], "1": ["0", "6", "7", "1", "8", "3"]}
        assert lists(rows(result, "train")) == {"0": expected["0"][:4], "1": expected["1"][:4]}
        assert rows(result, "valid") == [("1", "8", "4")]
        assert rows(result, "test") == [("0", "6", "4"), ("1", "3", "5")]
        header, _ = read_inter(out / "tiny.train.inter")
        assert header == ["user_id:token", "item_id:token", "timestamp:float"]
        assert result.interactions == {"train": 8, "valid": 1, "test": 2}
        assert (result.n_users, result.n_items) == (2, 9)

    def test_folder_and_gzip_give_the_same(self, users_dat: Path, tmp_path: Path) -> None:
        zipped = tmp_path / "zipped"
        zipped.mkdir()
        (zipped / "users.dat.gz").write_bytes(gzip.compress(users_dat.read_bytes()))
        a = convert("citeulike", users_dat.parent, tmp_path / "a")
        b = convert("citeulike", zipped, tmp_path / "b")
        assert [rows(a, part) for part in PARTS] == [rows(b, part) for part in PARTS]

    @pytest.mark.parametrize(
        ("line", "texts"),
        [
            ("4 1 2 3", ("line 2", "first number is 4", "3 item ids")),
            ("x 1 2", ("line 2", "'x'", "whole numbers")),
            ("2 1 b", ("line 2", "'b'", "whole numbers")),
            ("1 -3", ("line 2", "'-3'")),
            ("", ("line 2", "empty", "item count")),
            ("5 1 2 3 2 4", ("line 2", "item 2", "once")),
        ],
    )
    def test_bad_line(self, users_dat: Path, out: Path, line: str, texts: tuple[str, ...]) -> None:
        users_dat.write_text(f"1 8\n{line}\n6 1 2 3 4 5 6\n", encoding="utf-8")
        assert_kd_error((users_dat, *texts), "citeulike", users_dat, out)
        assert not out.exists()

    def test_no_user_is_long_enough(self, users_dat: Path, out: Path) -> None:
        users_dat.write_text("1 8\n", encoding="utf-8")
        assert_kd_error((users_dat, "at least 5"), "citeulike", users_dat, out)

    def test_missing_file(self, tmp_path: Path, out: Path) -> None:
        assert_kd_error(("looked for users.dat and users.dat.gz",), "citeulike", tmp_path, out)
        assert_kd_error(("does not exist", "users.dat"), "citeulike", tmp_path / "nope", out)

    def test_public_set_gives_the_published_split(self, tmp_path: Path) -> None:
        raw = shared_data("citeulike")
        result = convert("citeulike", raw / "users.dat", tmp_path / "citeulike")
        assert (result.n_users, result.n_items) == (5219, 25181)
        assert result.interactions == {"train": 98405, "valid": 12451, "test": 14724}
        for part in PARTS:
            published = (raw / f"{part}.txt").read_text(encoding="utf-8").splitlines()[1:]
            assert pairs(rows(result, part)) == {tuple(line.split("\t")) for line in published}

    def test_public_set_from_both_formats_is_the_same(self, tmp_path: Path) -> None:
        raw = shared_data("citeulike")
        a = convert("citeulike", raw, tmp_path / "a")
        b = convert("rcekd", raw, tmp_path / "b")
        for part in PARTS:
            left = (a.out / f"a.{part}.inter").read_bytes()
            assert left == (b.out / f"b.{part}.inter").read_bytes()


class TestRcekd:
    def test_keeps_the_split(self, split: Path, out: Path) -> None:
        result = convert("rcekd", split, out)
        assert rows(result, "train") == [("0", "a", "0"), ("0", "b", "1"), ("1", "a", "0")]
        assert rows(result, "valid") == [("0", "c", "2")]
        assert rows(result, "test") == [("0", "d", "3"), ("1", "c", "1"), ("1", "b", "2")]

    def test_columns_in_any_order_and_more(self, split: Path, out: Path) -> None:
        (split / "valid.txt").write_text("ITEM\tRATING\tUSER\r\nc\t5\t0\r\n", encoding="utf-8-sig")
        assert rows(convert("rcekd", split, out), "valid") == [("0", "c", "2")]

    def test_repeats_in_a_part_are_dropped_and_told(self, split: Path, out: Path) -> None:
        (split / "train.txt").write_text("USER\tITEM\n0\ta\n0\ta\n0\tb\n", encoding="utf-8")
        result = convert("rcekd", split, out)
        assert rows(result, "train") == [("0", "a", "0"), ("0", "b", "1")]
        assert "1 repeated" in result.summary()
        assert "1 repeated" in (out / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("text", "texts"),
        [
            ("user\titem\n0\ta\n", ("line 1", "'user', 'item'", "USER and ITEM")),
            ("USER ITEM\n0 a\n", ("line 1", "'USER ITEM'", "tab")),
            ("USER\tITEM\n0\ta\n0\n", ("line 3", "1 columns", "2")),
            ("USER\tITEM\n0\ta b\n", ("line 2", "'a b'", "an id is")),
            ("USER\tITEM\n0\ta\n\tb\n", ("line 3", "''", "an id is")),
            ("USER\tITEM\n0\tnan\n", ("line 2", "'nan'", "an id is")),
            ("USER\tITEM\n", ("no interaction",)),
            ("", ("empty",)),
        ],
    )
    def test_bad_file(self, split: Path, out: Path, text: str, texts: tuple[str, ...]) -> None:
        (split / "valid.txt").write_text(text, encoding="utf-8")
        assert_kd_error((split / "valid.txt", *texts), "rcekd", split, out)
        assert not out.exists()

    def test_pair_in_two_parts(self, split: Path, out: Path) -> None:
        (split / "test.txt").write_text("USER\tITEM\n1\ta\n0\tc\n1\td\n", encoding="utf-8")
        texts = ("2 (user, item) pairs", "'1'", "'a'", "train.txt and test.txt")
        assert_kd_error(texts, "rcekd", split, out)

    def test_missing_part(self, split: Path, out: Path) -> None:
        (split / "valid.txt").unlink()
        assert_kd_error(("valid.txt and valid.txt.gz",), "rcekd", split, out)

    def test_raw_is_no_folder(self, split: Path, out: Path) -> None:
        assert_kd_error(("is a file", "train.txt"), "rcekd", split / "train.txt", out)
        assert_kd_error(("does not exist", "valid.txt"), "rcekd", split / "nope", out)


class TestLightgcn:
    def test_draws_validation_from_train(self, lightgcn: Path, out: Path) -> None:
        result = convert("lightgcn", lightgcn, out, valid_ratio=0.25, seed=3)
        train, valid = rows(result, "train"), rows(result, "valid")
        assert result.interactions == {"train": 18, "valid": 6, "test": 5}
        # 0.25 of 20, of 3 (0.75 rounds to 1) and of 1 (0.25 rounds to 0)
        assert [sum(row[0] == user for row in valid) for user in "0123"] == [5, 1, 0, 0]
        assert not pairs(train) & pairs(valid)
        whole = lists([*train, *valid, *rows(result, "test")])
        assert whole["0"] == [str(k) for k in [*range(20), 30, 31]]
        assert whole["1"] == ["3", "1", "4", "5"]
        assert whole["2"] == ["1"]

    def test_draw_follows_the_seed(self, lightgcn: Path, tmp_path: Path) -> None:
        same = [convert("lightgcn", lightgcn, tmp_path / n, seed=1) for n in "ab"]
        other = convert("lightgcn", lightgcn, tmp_path / "c", seed=2)
        assert rows(same[0], "valid") == rows(same[1], "valid")
        assert rows(same[0], "valid") != rows(other, "valid")

    def test_a_train_interaction_always_stays(self, lightgcn: Path, out: Path) -> None:
        result = convert("lightgcn", lightgcn, out, valid_ratio=0.99)
        assert {row[0] for row in rows(result, "train")} == {"0", "1", "3"}

    def test_tells_rule_and_bare_users(self, lightgcn: Path, out: Path) -> None:
        result = convert("lightgcn", lightgcn, out, seed=7)
        readme = (out / "README.md").read_text(encoding="utf-8")
        for text in (readme, result.summary()):
            assert "random 0.1 of each user's train interactions (seed 7" in text
            assert "train.txt: 1 lines name a user and no item" in text
        assert "--valid_ratio=0.1 --seed=7" in readme

    def test_resplit_pools(self, lightgcn: Path, out: Path) -> None:
        result = convert("lightgcn", lightgcn, out, resplit=True)
        header, table = read_inter(out / "tiny.inter")
        assert header == ["user_id:token", "item_id:token"]
        assert len(table) == 29
        assert {"30", "31"} <= {item for user, item in table if user == "0"}
        config = config_of(result)
        assert "benchmark_filename" not in config
        assert config["eval_args"] == {
            "split": {"RS": [0.8, 0.1, 0.1]},
            "order": "RO",
            "group_by": "user",
            "mode": "full",
        }
        assert "--resplit=True" in result.command

    def test_pair_in_train_and_test(self, lightgcn: Path, tmp_path: Path) -> None:
        (lightgcn / "test.txt.gz").write_bytes(gzip.compress(b"0 30 5\n1 4\n"))
        texts = ("2 (user, item) pairs", "train.txt and test.txt.gz")
        assert_kd_error(texts, "lightgcn", lightgcn, tmp_path / "a")
        pooled = convert("lightgcn", lightgcn, tmp_path / "b", resplit=True)
        assert "2 repeated" in pooled.summary()
        assert pooled.n_interactions == 25

    @pytest.mark.parametrize(
        ("text", "texts"),
        [
            ("0 1 2\n\n1 3,4\n", ("line 3", "'3,4'", "an id is")),
            ("0 1\n1 2\n0 3\n", ("line 3", "'0' already has line 1")),
            ("0,1,2\n1,3\n", ("2 users and no item", "separated by spaces")),
            ("0 1 NaN\n", ("line 1", "'NaN'")),
            ("0 [PAD]\n", ("line 1", "'[PAD]'")),
            ("\n", ("empty",)),
        ],
    )
    def test_bad_file(self, lightgcn: Path, out: Path, text: str, texts: tuple[str, ...]) -> None:
        (lightgcn / "train.txt").write_text(text, encoding="utf-8")
        assert_kd_error((lightgcn / "train.txt", *texts), "lightgcn", lightgcn, out)

    def test_bad_token_in_the_second_file(self, lightgcn: Path, out: Path) -> None:
        (lightgcn / "test.txt.gz").write_bytes(gzip.compress(b"0 30\n1 5;\n"))
        assert_kd_error(("test.txt.gz, line 2", "'5;'"), "lightgcn", lightgcn, out)

    @pytest.mark.parametrize(
        ("options", "texts"),
        [
            ({"valid_ratio": 0.0}, ("valid_ratio", "0.0", "above 0 and below 1")),
            ({"valid_ratio": 1}, ("valid_ratio",)),
            ({"valid_ratio": "much"}, ("valid_ratio", "'much'")),
            ({"valid_ratio": 0.001}, ("valid_ratio", "no validation interaction", "20")),
            ({"seed": -1}, ("seed", "-1", "whole number")),
            ({"seed": 1.5}, ("seed", "1.5")),
            ({"resplit": "maybe"}, ("resplit", "'maybe'", "True or False")),
            ({"valid_ration": 0.1}, ("valid_ration", "Did you mean 'valid_ratio'")),
        ],
    )
    def test_bad_option(
        self, lightgcn: Path, out: Path, options: dict[str, object], texts: tuple[str, ...]
    ) -> None:
        assert_kd_error(texts, "lightgcn", lightgcn, out, **options)
        assert not out.exists()

    @pytest.mark.parametrize("keep", [1, 5, 25])
    def test_truncated_gzip(self, lightgcn: Path, out: Path, keep: int) -> None:
        path = lightgcn / "test.txt.gz"
        path.write_bytes(path.read_bytes()[:keep])
        assert_kd_error((path, "gzip"), "lightgcn", lightgcn, out)

    def test_empty_and_binary_files(self, lightgcn: Path, out: Path) -> None:
        path = lightgcn / "test.txt.gz"
        path.write_bytes(b"")
        assert_kd_error((path, "empty"), "lightgcn", lightgcn, out)
        path.write_bytes(gzip.compress(b"0 1\xff"))
        assert_kd_error((path, "UTF-8"), "lightgcn", lightgcn, out)

    def test_public_set(self, tmp_path: Path) -> None:
        result = convert("lightgcn", shared_data("gowalla"), tmp_path / "gowalla")
        assert (result.n_users, result.n_items) == (29858, 40981)
        n = result.interactions
        assert (n["train"] + n["valid"], n["test"]) == (810128, 217242)
        assert n["valid"] / 810128 == pytest.approx(0.1, abs=0.005)
        assert result.density == pytest.approx(0.00084, abs=1e-5)


class TestSequences:
    @pytest.mark.parametrize("zipped", [False, True])
    def test_writes_the_order(self, sequences: Path, out: Path, zipped: bool) -> None:
        if zipped:
            sequences.write_bytes(gzip.compress(sequences.read_bytes()))
        result = convert("sequences", sequences, out)
        header, table = read_inter(out / "tiny.inter")
        assert header == ["user_id:token", "item_id:token", "timestamp:float"]
        assert table == [("a", "x", "0"), ("a", "y", "1"), ("a", "x", "2"), ("b", "z", "0")]
        assert result.interactions == {"all": 4}
        assert "1 repeated (user, item) pairs were kept" in result.summary()
        assert "an order and not a time" in (out / "README.md").read_text(encoding="utf-8")
        assert config_of(result)["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}

    def test_bad_input(self, sequences: Path, out: Path) -> None:
        assert_kd_error(("is a folder", "text file"), "sequences", sequences.parent, out)
        assert_kd_error(("does not exist",), "sequences", sequences.parent / "no.txt", out)
        sequences.write_text('a x\nb "y"\n', encoding="utf-8")
        assert_kd_error((sequences, "line 2", '"y"'), "sequences", sequences, out)
        sequences.rename(sequences.with_suffix(".gz"))
        texts = ("content is not gzip",)
        assert_kd_error(texts, "sequences", sequences.with_suffix(".gz"), out)

    def test_public_set(self, tmp_path: Path) -> None:
        raw = shared_data("sequences") / "Beauty.txt"
        result = convert("sequences", raw, tmp_path / "Beauty")
        assert (result.n_users, result.n_items) == (22363, 12101)
        assert result.interactions == {"all": 198502}
        first_line = raw.read_text(encoding="utf-8").splitlines()[0].split()
        assert lists(rows(result))[first_line[0]] == first_line[1:]


class TestFolder:
    def test_config_and_readme(self, split: Path, out: Path) -> None:
        result = convert("rcekd", split, out)
        assert config_of(result) == {
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        }
        readme = (out / "README.md").read_text(encoding="utf-8")
        assert f"recbole-kd convert rcekd {split} {out}" in readme
        assert "| train | 2 | 2 | 3 |" in readme
        assert "| all | 2 | 4 | 7 |" in readme
        assert "density: 87.5000 %" in readme
        assert "median 3.5, mean 3.50" in readme
        assert "benchmark_filename: [train, valid, test]" in readme
        assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in result.files)

    def test_summary_says_how_to_use_it(self, split: Path, out: Path) -> None:
        summary = convert("rcekd", split, out).summary()
        assert "2 users, 4 items" in summary
        assert f"--dataset=tiny --config_files={out / 'tiny.yaml'}" in summary

    def test_own_files_are_replaced(self, split: Path, sequences: Path, out: Path) -> None:
        convert("rcekd", split, out)
        result = convert("sequences", sequences, out)
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in result.files)

    def test_other_files_are_refused(self, split: Path, out: Path) -> None:
        convert("rcekd", split, out)
        (out / "tiny.item").write_text("item_id:token\n", encoding="utf-8")
        assert_kd_error((out, "tiny.item", "overwrite"), "rcekd", split, out)
        result = convert("rcekd", split, out, overwrite=True)
        assert (out / "tiny.item").exists()
        assert result.command.endswith("--overwrite=True")

    def test_same_name_without_our_readme_is_refused(self, split: Path, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "tiny.train.inter").write_text("mine", encoding="utf-8")
        (out / "README.md").write_text("# mine\n", encoding="utf-8")
        assert_kd_error(("README.md, tiny.train.inter",), "rcekd", split, out)
        assert (out / "tiny.train.inter").read_text(encoding="utf-8") == "mine"

    def test_raw_folder_as_output_is_refused(self, split: Path) -> None:
        assert_kd_error(("train.txt",), "rcekd", split, split)

    def test_bad_output_names(self, split: Path, tmp_path: Path) -> None:
        assert_kd_error(("is a file",), "rcekd", split, split / "train.txt")
        assert_kd_error(("'a b'", "allowed"), "rcekd", split, tmp_path / "a b")
        assert_kd_error(("ml-100k", "own copy"), "rcekd", split, tmp_path / "ml-100k")
        assert_kd_error(("cannot be written",), "rcekd", split, split / "train.txt" / "x")

    @pytest.mark.parametrize("existed", [False, True])
    def test_nothing_is_left_after_an_error(
        self, split: Path, out: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
    ) -> None:
        if existed:
            convert("rcekd", split, out)
        before = {p.name: p.read_bytes() for p in out.iterdir()} if existed else {}

        def full_disk(path: Path, text: str, **_: object) -> None:
            path.write_bytes(b"half")
            if "test" in path.name:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full_disk)
        assert_kd_error((out, "No space left"), "rcekd", split, out)
        after = {p.name: p.read_bytes() for p in out.iterdir()} if out.exists() else {}
        assert after == before
        assert out.exists() == existed

    def test_an_interrupt_leaves_nothing(
        self, split: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("recbole_kd.convert.writer.os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert("rcekd", split, out)
        assert not out.exists()


def test_unknown_format_names_the_near_ones(tmp_path: Path) -> None:
    texts = ("'citeulik'", "citeulike, rcekd, lightgcn, sequences", "Did you mean 'citeulike'?")
    assert_kd_error(texts, "citeulik", tmp_path, tmp_path / "x")


def test_the_command_lines_help_names_every_format() -> None:
    assert list(FORMATS) == ["citeulike", "rcekd", "lightgcn", "sequences"]
    assert f"formats: {', '.join(FORMATS)}\n" in USAGE


def test_random_part_is_spread_over_the_list(tmp_path: Path) -> None:
    """The drawn validation part is no prefix or suffix of the train lists."""
    raw = tmp_path / "raw"
    raw.mkdir()
    train = [f"{u} " + " ".join(str(i) for i in range(100)) for u in range(50)]
    (raw / "train.txt").write_text("\n".join(train), encoding="utf-8")
    (raw / "test.txt").write_text("0 100\n", encoding="utf-8")
    result = convert("lightgcn", raw, tmp_path / "d")
    positions = np.array([int(row[2]) for row in rows(result, "valid")])
    assert len(positions) == 500
    assert positions.mean() == pytest.approx(49.5, abs=5)
