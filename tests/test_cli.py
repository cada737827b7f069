from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from corsd_lib import __version__, cli
from corsd_lib.evaluation import evaluate
from corsd_lib.files import write_json
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.training import Trainer

Tiny = Callable[..., TrainConfig]
Captured = pytest.CaptureFixture[str]

SMALL = shlex.split("--per-class 5 --width 4 --epochs 1 --batch-size 16 --lr 0.05 --accelerator cpu --probe-size 20 --quiet")
# Every field, a value other than its default, and how that is said.
WORDS: dict[str, tuple[Any, str]] = {
    "data": ("cifar10", "--data cifar10"),
    "data_root": ("/some where", "--data-root '/some where'"),
    "per_class": (7, "--per-class 7"),
    "validation_fraction": (0.25, "--validation-fraction 0.25"),
    "test_fraction": (0.3, "--test-fraction 0.3"),
    "image_size": (16, "--image-size 16"),
    "crop_to_box": (True, "--crop-to-box"),
    "hold_out_classes": (4, "--hold-out-classes 4"),
    "hold_out": ("last", "--hold-out last"),
    "hold_out_seed": (1, "--hold-out-seed 1"),
    "label_noise": (0.2, "--label-noise 0.2"),
    "network": ("resnet14", "--network resnet14"),
    "width": (6, "--width 6"),
    "stem": ("large", "--stem large"),
    "pretrained": (True, "--pretrained"),
    "method": ("byot", "--method byot"),
    "method_options": ({"exit_kd": 0.2, "hidden": 8, "fusion": "maps"}, "--method-options exit_kd=0.2 hidden=8 fusion=maps"),
    "epochs": (3, "--epochs 3"),
    "batch_size": (32, "--batch-size 32"),
    "sampling": ("balanced", "--sampling balanced"),
    "samples_per_class": (2, "--samples-per-class 2"),
    "augmentation": ("crop_flip", "--augmentation crop_flip"),
    "padding_mode": ("zero", "--padding-mode zero"),
    "cutout": (3, "--cutout 3"),
    "lr": (1.0, "--lr 1"),
    "schedule": ("multistep", "--schedule multistep"),
    "milestones": ((0.3, 0.6, 0.8), "--milestones 0.3 0.6 0.8"),
    "momentum": (0.5, "--momentum 0.5"),
    "nesterov": (True, "--nesterov"),
    "weight_decay": (1e-4, "--weight-decay 1e-4"),
    "decay_norm_and_bias": (False, "--no-decay-norm-and-bias"),
    "clip_norm": (2.0, "--clip-norm 2"),
    "accelerator": ("cpu", "--accelerator cpu"),
    "devices": (2, "--devices 2"),
    "num_nodes": (3, "--num-nodes 3"),
    "precision": ("bf16-mixed", "--precision bf16-mixed"),
    "channels_last": (True, "--channels-last"),
    "compile": (True, "--compile"),
    "cuda_graphs": (True, "--cuda-graphs"),
    "deterministic": (True, "--deterministic"),
    "workers": (0, "--workers 0"),
    "seed": (9, "--seed 9"),
    "out": ("a run", "--out 'a run'"),
    "resume": (True, "--resume"),
    "probe_every": (5, "--probe-every 5"),
    "probe_size": (99, "--probe-size 99"),
    "probe_split": ("test", "--probe-split test"),
    "checkpoint_seconds": (7.5, "--checkpoint-seconds 7.5"),
}


def _fails(capsys: Captured, *words: str) -> str:
    """The one line on stderr of a command that ends with status 2."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err, err
    return err


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, tiny_run: Run) -> list[TrainConfig]:
    """The configurations that `corsd train` would train, in place of training them."""
    seen: list[TrainConfig] = []

    def instead(config: TrainConfig, **_: Any) -> Run:
        seen.append(config)
        return tiny_run

    monkeypatch.setattr("corsd_lib.training.train", instead)
    return seen


# --- options from the dataclass ---


def test_every_field_is_an_option_with_a_help_text(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        said = re.search(
            rf"{flag}(?:, --no-[a-z-]+)?(?: [A-Z_=\[\] .]+?)? ([^ ].*?) \(default: ", text[text.index("options:") :]
        )
        assert said and len(said[1]) > 5 and "--" not in said[1], flag


def test_every_field_has_a_help_text() -> None:
    texts = {field.name: field.metadata["help"] for field in fields(TrainConfig)}
    assert all(texts.values())
    assert texts["cutout"] == "side of the cutout square in pixels, 0 for none"


@pytest.mark.parametrize("name", list(WORDS))
def test_every_option_sets_its_field_and_no_other(configured: list[TrainConfig], name: str) -> None:
    value, words = WORDS[name]
    more = ["--method", "corsd"] if name == "method_options" else []
    cli.main(["train", *shlex.split(words), *more])
    assert asdict(configured[0]) == {**asdict(TrainConfig()), name: value}


def test_all_options_are_tested() -> None:
    assert list(WORDS) == [f.name for f in fields(TrainConfig)]
    defaults = asdict(TrainConfig())
    assert all(value != defaults[name] for name, (value, _) in WORDS.items())


def test_the_version_is_that_of_the_package(capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"corsd {__version__}\n"


def test_flags_can_be_taken_back(configured: list[TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"nesterov": True, "decay_norm_and_bias": False, "epochs": 4}))
    cli.main(["train", "--config", str(file), "--no-nesterov", "--decay-norm-and-bias"])
    cli.main(["train", "--config", str(file), "--epochs", "5"])
    assert configured == [TrainConfig(epochs=4), TrainConfig(nesterov=True, decay_norm_and_bias=False, epochs=5)]


def test_method_options_go_over_those_of_the_file_unless_the_method_changes(
    configured: list[TrainConfig], tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"method": "byot", "method_options": {"exit_kd": 0.3, "hint": 1e-3}}))
    cli.main(["train", "--config", str(file), "--method-options", "exit_kd=0.5", "temperature=4"])
    cli.main(["train", "--config", str(file), "--method", "corsd", "--method-options", "margin=0.5"])
    cli.main(["train", "--config", str(file), "--method", "byot"])
    assert [c.method_options for c in configured] == [
        {"exit_kd": 0.5, "hint": 1e-3, "temperature": 4},
        {"margin": 0.5},
        {"exit_kd": 0.3, "hint": 1e-3},
    ]


# --- train ---


def test_a_run_is_reproduced_from_its_own_config(tmp_path: Path, capsys: Captured) -> None:
    options = [
        "--method",
        "byot",
        "--method-options",
        "exit_kd=0.4",
        "label_smoothing=0.1",
        "--seed",
        "3",
        "--cutout",
        "2",
    ]
    cli.main(["train", *SMALL, *options, "--validation-fraction", "0.1", "--out", str(tmp_path / "one")])
    cli.main(["train", "--config", str(tmp_path / "one" / "config.json"), "--out", str(tmp_path / "two"), "--quiet"])
    for name in ("weights.safetensors", "test.json", "probes/epoch_0001.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (load_run(tmp_path / name) for name in ("one", "two"))
    assert {**one.raw_config, "out": None} == {**two.raw_config, "out": None} and two.config.out == str(tmp_path / "two")
    out, err = capsys.readouterr()
    assert err == "" and out.count("exit 3") == 2 and "byot on digits, resnet8, seed 3, finished" in out


def test_the_table_shows_the_figures_of_the_test(tiny_run: Run, capsys: Captured) -> None:
    cli.main(["evaluate", str(tiny_run.path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tiny_run.path} on digits, test: 797 images"
    assert lines[1].split("  ")[-1].strip() == "params" and len(lines) == 6
    assert tiny_run.test is not None
    for line, row in zip(lines[2:], [*tiny_run.test["exits"], tiny_run.test["ensemble"]], strict=True):
        figures = re.findall(r"[\d.]+", line.partition("exit ")[2][1:] or line)
        assert [float(f) for f in figures[:2]] == [pytest.approx(row["top1"], abs=0.006), pytest.approx(row["top5"], abs=0.006)]
        assert float(figures[2]) == pytest.approx(row["cross_entropy"], abs=0.0006)
    assert [cli._count(n) for n in (999, 1000, 24160, 1.5e6, 2.34e9)] == ["999", "1 k", "24.2 k", "1.5 M", "2.34 G"]


def test_progress_is_shown_unless_it_is_quiet(tmp_path: Path, capsys: Captured) -> None:
    cli.main(["train", *SMALL[:-1], "--method", "baseline", "--out", str(tmp_path / "run")])
    assert "3/3" in capsys.readouterr().err


# --- evaluate, data ---


def test_evaluate_prints_json_for_programs(tiny_run: Run, capsys: Captured) -> None:
    for split in ("test", "validation", "train"):
        cli.main(["evaluate", str(tiny_run.path), "--split", split, "--json", "--device", "cpu"])
        assert json.loads(capsys.readouterr().out) == asdict(evaluate(tiny_run, split=split))


def test_data_describes_a_data_set(capsys: Captured) -> None:
    cli.main(["data", "digits"])
    out = capsys.readouterr().out
    assert out.startswith("digits: 1,000 train, 797 test images, 1x8x8\n10 classes: 0, 1, 2, 3, ...\n")
    cli.main(["data", "digits", "--image-size", "16"])
    assert "1x16x16" in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two classes of small images without a split, and a file that is not read."""
    for name, value in (("cat", 50), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (9, 9), (value + i,) * 3).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "cat" / "a.gif").write_bytes(b"x")
    return tmp_path / "pets"


NOTES = (
    "files that are not read: 1 .gif; read are .jpg, .jpeg, .jfif, .png, .bmp, .ppm, .pgm, .tif, .tiff, .webp",
    "no train/ and test/: about test_fraction 0.3 of each class is test (15 train, 5 test images)",
    "images of about 9x9 are enlarged to 16x16; image_size sets another side",
)


def test_data_shows_what_was_passed_over_once(pictures: Path, capsys: Captured) -> None:
    cli.main(["data", f"folder:{pictures}", "--test-fraction", "0.3", "--image-size", "16"])
    out, err = capsys.readouterr()
    assert out.splitlines()[-3:] == [f"note: {note}" for note in NOTES] and err == ""


def test_train_says_what_was_passed_over_once(pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    words = shlex.split("--image-size 16 --test-fraction 0.3 --width 4 --epochs 1 --batch-size 7 --accelerator cpu --quiet")
    cli.main(["train", "--data", f"folder:{pictures}", *words, "--method", "baseline", "--out", str(tmp_path / "run")])
    cli.main(["evaluate", str(tmp_path / "run")])  # loads the data again
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"corsd: note: folder:{pictures}: {note}" for note in NOTES]
    assert "test: 5 images" in out


# --- errors ---


@pytest.mark.parametrize(
    "words,message",
    [
        ("train --epochs many", "corsd train: error: argument --epochs: invalid int value: 'many'"),
        ("train --epoch-s 3", "corsd: error: unrecognized arguments: --epoch-s 3"),
        ("train --nesterov yes", "corsd: error: unrecognized arguments: yes"),
        ("train --lr 1e308 --out OUT", "error: lr = 1e+308 must be above 0 and below 1e+38"),
        ("train --weight-decay 1e308 --out OUT", "error: weight_decay = 1e+308 must be at least 0 and below 1e+38"),
        ("train --method-options temperature=1e200 --out OUT", "temperature = 1e+200 must be above -1e+38 and below 1e+38"),
        ("train --image-size 100000 --out OUT", "error: image_size is 100000; allowed: a whole number of at least 1"),
        ("train --data npz:~no_such_user/x --out OUT", "'~no_such_user' has no home folder"),
        ("train --method-options exit_kd", "argument --method-options: 'exit_kd' is not NAME=VALUE, as in exit_kd=0.2"),
        ("compare x --slurm gpu", "argument --slurm: 'gpu' is not NAME=VALUE, as in partition=gpu"),
        ("train --method-options exit=1 --out OUT", "error: option of method 'corsd': 'exit' is not known; allowed: task, "),
        ("train --method-options exit_kd=much --out OUT", "error: method 'corsd': exit_kd = 'much' must be of type float"),
        ("train --method kd", "error: method 'kd' is not known; allowed: baseline, label_smoothing, "),
        ("train --epochs 0", "error: epochs = 0 must be above 0"),
        ("train --data mnist --out OUT", "error: data set 'mnist' is not known; allowed: digits, shapes, "),
        ("train --data cifar10 --data-root nowhere --out OUT", "error: cifar10 is neither at nowhere"),
        ("train --per-class 101 --out OUT", "error: per_class 101 is more than the 100 training images of class '0'"),
        ("train --network resnet9 --out OUT", "error: network 'resnet9' is not known; allowed: resnet8, "),
        ("train --width 0 --out OUT", "error: width = 0 for network 'resnet8'"),
        ("train --image-size 0 --out OUT", "error: image_size is 0; allowed: a whole number of at least 1"),
        ("train --crop-to-box --out OUT", "error: crop_to_box is on for 'digits'; allowed: only for cub200"),
        ("train --sampling pairs --out OUT", "error: sampling 'pairs' is not known; allowed: plain, balanced, triplet"),
        ("train --sampling triplet --batch-size 2 --out OUT", "error: batch_size = 2; allowed for triplets: at least 3"),
        ("train --samples-per-class 4 --batch-size 3 --out OUT", "balanced batches need 2 <= samples_per_class <= batch_size"),
        ("train --augmentation blur --out OUT", "error: augmentation 'blur' is not known; allowed: none, crop, "),
        ("train --accelerator abacus --out OUT", "error: cannot train with accelerator 'abacus', devices 1"),
        ("train --config nowhere.json", "error: nowhere.json does not exist"),
        ("train --config .", "error: cannot read .: Is a directory"),
        ("train --seed 99999999999999999999 --out OUT", "error: seed = 99999999999999999999 must be at least 0 and below"),
        ("tune STUDY", 'error: STUDY/study.json has no field "tuning" with the search spaces of the variants'),
        ("tune STUDY baseline", 'error: STUDY/study.json has no field "tuning"'),
        ("compare OUT --tables --runs /dev/null/x", "error: OUT/study.json does not exist"),
        ("evaluate RUN --device meta", "error: device 'meta' cannot be used"),
        ("evaluate nowhere", "error: nowhere is not a run: it has no config.json"),
        ("evaluate RUN --split all", "corsd evaluate: error: argument --split: invalid choice: 'all'"),
        ("evaluate RUN --device abacus", "error: device 'abacus' cannot be used"),
        ("data mnist", "error: data set 'mnist' is not known; allowed: digits, "),
        ("data folder:nowhere", "error: nowhere does not exist: it is not at /"),
        ("data npz:nowhere --data-root here", "error: nowhere does not exist: it is neither at /"),
        ("paint", "corsd: error: argument COMMAND: invalid choice: 'paint'"),
        ("", "corsd: error: the following arguments are required: COMMAND"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Run, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"OUT": str(tmp_path / "out"), "RUN": str(tiny_run.path), "STUDY": str(tmp_path / "study")}
    write_json(tmp_path / "study" / "study.json", {"variants": {"baseline": {"train": {"method": "baseline"}}}})
    message = message.replace("OUT", places["OUT"]).replace("STUDY", places["STUDY"])
    assert message in _fails(capsys, *(places.get(word, word) for word in words.split()))
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()  # found before anything was written


def test_control_characters_of_a_name_are_shown_escaped(capsys: Captured) -> None:
    message = _fails(capsys, "data", "npz:no\x1b[31mred\r\a.npz")
    assert r"no\x1b[31mred\r\x07.npz" in message and "\x1b" not in message


@pytest.mark.parametrize(
    "words,name",
    [
        ("train --out BAD --epochs 1", "out"),
        ("train --data folder:BAD", "data"),
        ("train --data-root BAD", "data_root"),
        ("train --config BAD", "config"),
        ("data npz:BAD", "name"),
        ("data digits --data-root BAD", "data_root"),
        ("evaluate BAD", "run"),
        ("export BAD OUT", "run"),
        ("report OUT BAD", "runs"),
        ("report OUT --out BAD", "out"),
        ("compare BAD", "study"),
        ("compare OUT --variants BAD", "variants"),
        ("tune OUT BAD", "variants"),
        ("bench --out BAD", "out"),
    ],
)
def test_a_name_that_is_not_utf_8_is_one_line(capsys: Captured, tmp_path: Path, words: str, name: str) -> None:
    bad = os.fsdecode(b"caf\xe9")
    places = [word.replace("BAD", bad).replace("OUT", str(tmp_path / "out")) for word in words.split()]
    assert re.search(rf"corsd: error: argument {name}: '.*caf\\udce9' is not valid UTF-8", _fails(capsys, *places))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--epochs", "1" * 9999],
        ["train", "--lr", "x" * 9999],
        ["train", "--method-options", "x" * 9999],
        ["train", "--method-options", "task=" + "1" * 9999],
        ["train", "--method-options", "task=" + "[" * 99_999],
        ["train", "--method-options", "task=" + "[1," * 9999 + "1" + "]" * 9999],
        ["train", "--method-options", "x" * 9999 + "=1"],
        ["train", "--method", "x" * 9999],
        ["train", "--network", "x" * 9999, "--out", "OUT"],
        ["train", "--data", "x" * 9999, "--out", "OUT"],
        ["train", "--schedule", "x" * 9999],
        ["x" * 9999],
        ["data", "digits", "--image-size", "9" * 4000],
        ["methods", "x" * 9999],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_what_was_typed_is_not_repeated_whole(capsys: Captured, tmp_path: Path, words: list[str]) -> None:
    said = _fails(capsys, *(str(tmp_path / "out") if word == "OUT" else word for word in words))
    assert len(said) < 1500


def test_a_place_that_cannot_be_used_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    write_json(tmp_path / "study.json", {"variants": {"baseline": {"train": {"method": "baseline"}}}})
    words = ["compare", str(tmp_path), "--runs", "/dev/null/x"]
    assert "corsd: error: cannot write /dev/null/x: Not a directory" in _fails(capsys, *words)


def test_weights_that_leave_nothing_to_train_are_one_line(tmp_path: Path, capsys: Captured) -> None:
    words = ["train", "--quiet", "--method", "baseline", "--method-options", "task=0", "--out", str(tmp_path / "out")]
    assert "method 'baseline': task all have weight 0; allowed: one or more above 0" in _fails(capsys, *words)


def test_an_existing_run_is_one_line(tiny_run: Run, capsys: Captured) -> None:
    assert "already contains a run: resume it (resume=True, --resume), or" in _fails(
        capsys, "train", "--out", str(tiny_run.path)
    )
    words = ["train", "--out", str(tiny_run.path), "--resume", "--epochs", "3"]
    assert "contains a run of another configuration: per_class was 5, is None" in _fails(capsys, *words)


def test_an_interrupt_with_nothing_to_save_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("corsd_lib.datasets.load_dataset", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "digits"])
    assert end.value.code == 130 and capsys.readouterr() == ("", "corsd: stopped\n")
    monkeypatch.setattr(cli, "_study", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "results/mine"])
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "corsd: stopped; run the same command again to continue\n")


# --- real data ---


@pytest.mark.slow
def test_real_images_train_resume_and_evaluate(
    data_root: Path, read_once: None, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUB-200-2011; notebook 05 trains on CIFAR-100, see tests/notebooks/test_real_data.py."""
    words = ["train", "--data", "cub200", "--data-root", str(data_root), "--per-class=2", "--image-size=32"]
    words += shlex.split(
        "--network resnet8 --width 4 --epochs 1 --accelerator cpu --probe-size 200 --quiet --sampling balanced"
    )
    step = Trainer._step

    def interrupted(self: Trainer, batch: Any) -> Any:
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", interrupted)
        cli.main([*words, "--out", str(tmp_path / "run")])
    assert "0 of 1 epochs" in capsys.readouterr().out
    cli.main([*words, "--out", str(tmp_path / "run"), "--resume"])
    assert "finished" in capsys.readouterr().out
    cli.main(["evaluate", str(tmp_path / "run"), "--data-root", str(data_root), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result == load_run(tmp_path / "run").test
    assert result["images"] == 5794 and len(result["exits"]) == 3


@pytest.mark.parametrize("words", [("train", "--config", ""), ("train", "--out", ""), ("report", "runs/x", "--out", "")])
def test_an_empty_argument_is_refused(words: tuple[str, ...], capsys: Captured) -> None:
    assert f"argument {words[-2].strip('-')} is empty; give a value, or leave it out" in _fails(capsys, *words)
