"""``eval.py`` and ``scripts/score_predictions.py`` from files to files, on a tiny random model."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.config import Config, DataSettings, SplitSettings, to_yaml
from aura.data.processor import Processor
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Turn

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("aura_eval", ROOT / "eval.py")
assert SPEC is not None and SPEC.loader is not None
program = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(program)
score_predictions = runpy.run_path(str(ROOT / "scripts" / "score_predictions.py"))["main"]


@pytest.fixture
def data(tmp_path) -> Path:
    """Two images with two conversations each."""
    rng = np.random.default_rng(0)
    images, conversations = [], {}
    (tmp_path / "pictures").mkdir()
    for number in (1, 2):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
        amodal = np.zeros((32, 48), bool)
        amodal[4:20, 4 : 20 + 4 * number] = True
        visible = amodal.copy()
        visible[:, :12] = False
        front = np.zeros_like(amodal)
        front[2:25, 1:12] = True
        bus = AmodalObject(
            10 * number, "bus", encode_rle(visible), encode_rle(amodal), 1 - visible.sum() / amodal.sum()
        )
        tree = AmodalObject(10 * number + 1, "tree", encode_rle(front), encode_rle(front), 0.0)
        images.append(AnnotatedImage(number, f"{number}.png", 32, 48, (bus, tree), {"id": number}))
        ride = Turn("What could I ride?", "You could ride the bus [SEG].", (bus.id,))
        hide = Turn("And what hides it?", "The tree [SEG] hides the bus [SEG].", (tree.id, bus.id))
        conversations[number] = [Conversation(10 * number, (ride, hide)), Conversation(10 * number + 1, (hide,))]
    dataset = AmodalReasonSeg.build(images, conversations, source=tmp_path / "test.json", image_folder="pictures")
    return dataset.save()


@pytest.fixture
def run_folder(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)
    tiny_model.config.seg_token_id = processor.text.seg_token_id
    tiny_model.save_pretrained(tmp_path / "run" / "export")
    processor.save_pretrained(tmp_path / "run" / "export")
    return tmp_path / "run"


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_checkpoint_is_evaluated_and_its_predictions_score_the_same(run_folder, data, tmp_path, capsys) -> None:
    out, sheet, masks = tmp_path / "eval", tmp_path / "sheet.png", tmp_path / "masks.json"
    arguments = ["--checkpoint", str(run_folder), "--data", str(data), "--out", str(out), "--device", "cpu"]
    arguments += ["--feature-cache", str(tmp_path / "cache"), "--max-new-tokens", "5"]
    arguments += ["--protocol", "generated_matched", "--protocol", "teacher_forced"]
    arguments += ["--contact-sheet", str(sheet), "--num", "1", "--predictions", str(masks)]
    assert program.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "generated_matched" in printed and "amodal := predicted visible" in printed
    assert sorted(path.name for path in out.iterdir()) == ["generated_matched", "teacher_forced"]
    files = ["objects.jsonl", "report.csv", "report.json", "report.md", "report.tex"]
    assert sorted(path.name for path in (out / "teacher_forced").iterdir()) == files
    assert Image.open(sheet).width > 900

    ours = read(out / "teacher_forced")
    assert (ours["protocol"], ours["num_images"], ours["num_answers"], ours["num_objects"]) == (
        "teacher_forced",
        2,
        6,
        10,
    )
    assert len(json.loads(masks.read_text())) == 10
    again = ["--data", str(data), "--predictions", str(masks), "--out", str(tmp_path / "again")]
    assert score_predictions([*again, "--compare", f"AURA={out / 'teacher_forced'}"]) == 0
    assert "│ AURA" in capsys.readouterr().out
    theirs = read(tmp_path / "again")
    # The model's own count of [SEG] is not in the file.
    assert theirs.pop("seg_count_accuracy") == 1 and ours.pop("seg_count_accuracy") is not None
    assert theirs == ours


def test_one_protocol_writes_into_the_folder_itself(run_folder, data, tmp_path, capsys) -> None:
    out = tmp_path / "eval"
    arguments = ["--checkpoint", str(run_folder / "export"), "--data", str(data), "--limit", "1", "--out", str(out)]
    assert program.main(arguments) == 0
    assert (read(out)["protocol"], read(out)["num_images"]) == ("teacher_forced", 1)


def test_the_runs_validation_split_is_the_default(run_folder, data, tmp_path, capsys) -> None:
    assert program.main(["--checkpoint", str(run_folder)]) == 2
    assert "names no validation split; say what to evaluate with --data" in capsys.readouterr().err
    config = Config(data=DataSettings(val=SplitSettings(annotations=str(data))))
    (run_folder / "config.yaml").write_text(to_yaml(config))
    assert program.main(["--checkpoint", str(run_folder), "--limit", "1", "--out", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out")["num_images"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--checkpoint": "absent"}, "absent does not exist"),
        ({"--data": "absent.json"}, "absent.json"),
        ({"--images": "absent"}, "image 1"),
    ],
)
def test_mistakes_are_one_line(run_folder, data, capsys, change, message) -> None:
    arguments = {"--checkpoint": str(run_folder), "--data": str(data), **change}
    assert program.main([part for pair in arguments.items() for part in pair]) == 2
    error = capsys.readouterr().err.strip().split("\r")[-1]  # a progress bar may have been wiped away before it
    assert error.startswith("eval.py: ") and message in error and "\n" not in error


def test_a_model_is_spread_over_devices_by_one_process_alone(run_folder, data, capsys, monkeypatch) -> None:
    arguments = ["--checkpoint", str(run_folder), "--data", str(data), "--device-map", "auto"]
    assert program.main(arguments) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert program.main(arguments) == 2
    assert "start eval.py without torchrun" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_refused_before_the_evaluation(run_folder, data, capsys) -> None:
    arguments = ["--checkpoint", str(run_folder), "--data", str(data), "--contact-sheet", "sheet.txt"]
    assert program.main(arguments) == 2
    assert capsys.readouterr().err == "eval.py: sheet.txt: .txt is no picture format; call it .png\n"


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--protocol", "guess"], ["--out", __file__], []])
def test_wrong_options_are_refused(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main([*(["--checkpoint", "x"] if arguments else []), *arguments])
    assert stop.value.code == 2
