"""Values that no run can use are refused in a line, by every verb, before anything is written."""

from pathlib import Path

import pytest
import yaml

from stabkit.cli import main
from stabkit.config import load_config, save_config
from stabkit.yamlio import dump_yaml, parse_yaml
from tests.conftest import SMALL

BAD = {  # words of a command line, and what the refusal says
    "a bool by tag": ("compute.compile=!!bool foo", "'foo' is no bool"),
    "an int by tag": ('seed=!!int ""', "'' is no int"),
    "an object": ("seed=!!python/object:os.system x", "the tag !!python/object:os.system"),
    "bytes": ("seed=!!binary aGk=", "the tag !!binary"),
    "a set": ("seed=!!set {a}", "the tag !!set"),
    "a map by tag": ("seed=!!map [1]", "the tag !!map"),
    "a key twice": ("data={a: 1, a: 2}", "duplicate key 'a'"),
    "a merge": ("data={<<: {a: 1}}", "a merge"),
    "an endless alias": ("data=&a [*a]", "an alias"),
    "deep": ("data=" + "[" * 5000, "too deeply"),
    "a NUL": ("data.path=a\0b", "not valid YAML"),
    "an escaped NUL": ('data.name=imagefolder ; data.path="a\\0b"', "holds a NUL byte"),
    "digits without end": ("seed=" + "9" * 5000, "5,000 digits"),
    "a leading zero": ("train.steps=0240", "write 240"),
    "a time": ("train.steps=1:30", "a whole number above 0, written as 90"),
    "underscores": ("train.steps=1_000", "a whole number above 0, written as 90"),
    "quoted digits": ("train.steps='90'", "a whole number above 0, written as 90"),
    "a date": ("seed=2020-01-01", "a whole number from 0, written as 90"),
    "off": ("compute.compile=off", "should be true or false"),
    "yes": ("model.qk_norm=yes", "should be true or false"),
    "one for true": ("model.qk_norm=1", "should be true or false"),
    "text for a share": ("knn.fifo=half", "a number above 0 up to 1, written as 90"),
    "true for a number": ("optim.lr=true", "optim.lr = true: should be a number above 0"),
    "a list of seeds": ("seed=[1, 2]", "seed = [1, 2]"),
    "a negative seed": ("seed=-1", "a whole number from 0"),
    "a true seed": ("seed=true", "seed = true: should be a whole number from 0"),
    "half a seed": ("seed=1.5", "seed = 1.5"),
    "a seed of 65 bits": ("seed=18446744073709551616", "at most 18446744073709551615"),
    "no rate": ("optim.lr=.nan", "optim.lr = nan"),
    "an endless rate": ("optim.lr=.inf", "optim.lr = inf"),
    "a device": ("runtime.device=foo", "runtime.device = 'foo'"),
    "a device's number": ("runtime.device=cuda:x", "runtime.device = 'cuda:x'"),
    "a user": ("data.name=imagefolder ; data.path=~nouser-at-all/x", "no such user"),
    "a user's cache": ("runtime.cache=~nouser-at-all/x", "no such user"),
    "an image": ("data.image_size=1e8", "up to 4,096"),
    "a queue": ("method.queue=1e12", "up to 10,000,000"),
    "a batch": ("train.batch=1e9", "up to 65,536"),
    "a width": ("model.width=4e9", "up to 65,536"),
    "a depth": ("model.depth=1e6", "up to 1,000"),
    "a head": ("method.hidden=1e9", "up to 65,536"),
    "images": ("data.num_train=1e12", "up to 100,000,000"),
    "a bank": ("knn.bank=1e12", "at most 1,000,000,000"),
    "steps": ("train.steps=1e15", "at most 1,000,000,000"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["train", "sweep", "dry run"])
def test_a_bad_value_is_refused_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    case: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("name: demo\nbase: tiny")
    word, said = BAD[case]
    words = {
        "train": ["train", "tiny"],
        "sweep": ["sweep", "demo.yaml", "--cluster", "local"],
        "dry run": ["sweep", "demo.yaml", "--cluster", "local", "--dry-run"],
    }[verb]
    assert main([*words, *SMALL, *word.split(" ; ")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 2  # the source, and the problem
    assert sorted(Path().rglob("*")) == [Path("demo.yaml")]


FILES = {
    "not UTF-8": (b"name: \xff\xfe", "not UTF-8"),
    "text beside numbers": (b"name: a\nbase: tiny\ngrid: {optim.lr: [1e-3, many]}", "'many'"),
    "a time among numbers": (b"name: a\nbase: tiny\ngrid: {train.steps: [10, 1:30]}", "'1:30'"),
    "seeds in a list": (b"name: a\nbase: tiny\nseeds: [[0, 1]]", "seeds.0 = [0, 1]"),
    "a true seed": (
        b"name: a\nbase: tiny\nseeds: [true]",
        "seeds.0 = true: should be a whole number from 0",
    ),
    "a seed in quotes": (b"name: a\nbase: tiny\nseeds: ['1']", "seeds.0 = '1'"),
    "a seed of 65 bits": (b"name: a\nbase: tiny\nseeds: [18446744073709551616]", "seeds.0"),
    "a time in minutes": (b"name: a\nbase: tiny\nslurm: {timeout_min: 1:30:00}", "'1:30:00'"),
    "a tag": (b"name: a\nbase: tiny\nset: {model.qk_norm: !!bool foo}", "'foo' is no bool"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_sweep_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(FILES[case][0])
    runs = tmp_path / "runs"
    assert main(["sweep", str(file), "--dry-run", "--runs", str(runs)]) == 2
    assert FILES[case][1] in capsys.readouterr().err
    assert not runs.exists()


READ = {
    "1:30:00": "1:30:00", "16:00:00": "16:00:00", "1:30": "1:30", "off": "off", "no": "no",
    "1_000": "1_000", "2020-01-01": "2020-01-01", "0b11": "0b11", "=": "=",
    "1e-3": 1e-3, "1E3": 1000.0, "+12": 12, "-0": 0, "0o17": 15, "0x1F": 31, ".5": 0.5,
    "1.": 1.0, ".inf": float("inf"), "-.Inf": float("-inf"), ".NaN": float("nan"),
    "true": True, "FALSE": False, "~": None, "Null": None, "": None,
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_plain_text_is_read_in_yaml_1_2s_spelling(text: str) -> None:
    assert repr(parse_yaml(text)) == repr(READ[text])


@pytest.mark.parametrize(
    "value", [*READ, "0240", "089", "1e-4", "<<", 1e-5, 1e300, float("inf"), True, None, -3]
)
def test_what_is_written_is_read_again(value: object) -> None:
    assert parse_yaml(dump_yaml({"a": value})) == {"a": value}
    assert yaml.safe_load(dump_yaml({"a": str(value)})) == {"a": str(value)}  # by others too


def test_a_begin_is_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stabkit.sweep.slurm_request import merged

    words = parse_yaml("{timeout_min: 90, additional_parameters: {begin: 16:00:00}}")
    request, _ = merged({}, {}, words)
    assert request.additional_parameters == {"begin": "16:00:00"}


def test_a_saved_configuration_is_read_again() -> None:
    config = load_config("tiny")
    assert parse_yaml(save_config(config)) == config.model_dump(mode="json", exclude={"branch"})
