"""From a SAM and a data set to the reference lines, and to one table with others."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.chat.assistant import Assistant
from aura.data.feature_cache import FeatureCache
from aura.data.processor import Processor
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Turn

SCRIPTS = Path(__file__).parents[2] / "scripts"
REFERENCE = runpy.run_path(str(SCRIPTS / "reference_lines.py"))["main"]
JOIN = runpy.run_path(str(SCRIPTS / "join_reports.py"))["main"]


@pytest.fixture
def data(tmp_path) -> Path:
    """A photograph with a dog of which half is hidden."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)).save(tmp_path / "1.png")
    amodal = np.zeros((32, 48), bool)
    amodal[8:24, 8:40] = True
    visible = amodal.copy()
    visible[:, :24] = False
    dog = AmodalObject(3, "dog", encode_rle(visible), encode_rle(amodal), 0.5)
    image = AnnotatedImage(1, "1.png", 32, 48, (dog,))
    turn = Turn("What can bark?", "The dog [SEG] can bark.", (3,))
    path = tmp_path / "test.json"
    return AmodalReasonSeg.build([image], {1: [Conversation(1, (turn,))]}, source=path, image_folder=".").save()


def test_from_files_to_one_table(data, tiny_sam_dir, tmp_path, capsys):
    lines = tmp_path / "lines"
    given = [f"--sam={tiny_sam_dir}", f"--data={data}", f"--out={lines}", "--name=Tiny", "--device=cpu"]
    assert REFERENCE([*given, f"--feature-cache={tmp_path / 'cache'}"]) == 0
    figures = {kind: json.loads((lines / f"{kind}_box" / "report.json").read_text()) for kind in ("visible", "amodal")}
    assert figures["visible"]["visible"]["giou_object"] is not None
    assert figures["amodal"]["amodal"]["giou_object"] is not None
    assert "Tiny, true amodal box" in capsys.readouterr().out

    table = tmp_path / "table.md"
    names = [f"{kind} box={lines / f'{kind}_box'}" for kind in figures]
    assert JOIN([*names, f"--out={table}"]) == 0
    assert json.loads(table.with_suffix(".json").read_text()) == {f"{kind} box": f for kind, f in figures.items()}
    rows = [line for line in table.read_text().splitlines() if "teacher_forced" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["visible box", "amodal box"]


def test_a_run_shares_its_features(data, tiny_sam_dir, tiny_model, tiny_tokenizer, tmp_path):
    """With --checkpoint the run's own encoder fills the cache that eval.py reads."""
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)
    tiny_model.config.seg_token_id = processor.text.seg_token_id
    tiny_model.save_pretrained(tmp_path / "run" / "export")
    processor.save_pretrained(tmp_path / "run" / "export")
    given = [f"--sam={tiny_sam_dir}", f"--data={data}", f"--out={tmp_path / 'lines'}", "--device=cpu"]
    assert REFERENCE([*given, f"--feature-cache={tmp_path / 'cache'}", f"--checkpoint={tmp_path / 'run'}"]) == 0
    assistant = Assistant.from_pretrained(tmp_path / "run", "cpu")
    cache = FeatureCache.open(tmp_path / "cache", assistant.model, assistant.processor)
    assert cache is not None and not cache.missing([data.parent / "1.png"])


@pytest.mark.parametrize(("entries", "said"), [(["a"], "NAME=REPORT"), (["a=nowhere"], "nowhere")])
def test_a_report_that_is_none_is_named(entries, said, capsys):
    assert JOIN(entries) == 2
    assert said in capsys.readouterr().err


def test_no_question_no_lines(data, tiny_sam_dir, tmp_path, capsys):
    document = json.loads(data.read_text()) | {"conversations": []}
    data.write_text(json.dumps(document))
    assert REFERENCE([f"--sam={tiny_sam_dir}", f"--data={data}", f"--out={tmp_path / 'lines'}"]) == 2
    assert "no image with a question" in capsys.readouterr().err
