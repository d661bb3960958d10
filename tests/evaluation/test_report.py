"""The report's keys, its files, and its tables in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from aura.evaluation import tables
from aura.evaluation.metrics import AnswerScore, score_object
from aura.evaluation.report import Report, combine, read_figures, write_tables
from aura.types import MaskPair, Masks, SegRecord

REGION = {"giou_object", "giou_answer", "giou_image", "ciou"}
SCHEMA = {
    "protocol",
    "num_images",
    "num_answers",
    "num_objects",
    "visible",
    "amodal",
    "invisible",
    "amodal_from_visible",
    "occlusion_rate_mae",
    "seg_count_accuracy",
    "visible_outside_amodal",
    "by_occlusion",
}


def make_report(name: str = "AURA", seed: int = 0, masks: Masks = "both") -> Report:
    rng = np.random.default_rng(seed)
    objects, answers = [], []
    for number in range(6):
        amodal = rng.random((8, 8)) < 0.6
        true = MaskPair(amodal & (rng.random((8, 8)) < number / 5), amodal)
        guess = None if number == 3 else MaskPair(true.visible, rng.random((8, 8)) < 0.6, float(rng.random()))
        if guess is not None and masks != "both":
            guess = MaskPair(
                *(mask if kind == masks else None for kind, mask in zip(("visible", "amodal"), guess[:2], strict=True))
            )
        record = SegRecord(number // 2, number, 0, 0, 50 + number, "café_cup")
        objects.append(score_object(record, true, guess, None if guess is None else 0, masks))
        answers.append(
            AnswerScore(number // 2, number, 0, 1, int(guess is not None), "What?", "A [SEG].", f"My [SEG] {number}.")
        )
    return Report("generated_matched", tuple(objects), tuple(answers), name)


def test_report_json_has_exactly_the_agreed_keys(tmp_path) -> None:
    make_report().write(tmp_path)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert set(figures) == SCHEMA
    for region in ("visible", "amodal", "amodal_from_visible"):
        assert set(figures[region]) == REGION
        assert all(0 <= value <= 1 for value in figures[region].values())
    assert set(figures["invisible"]) == {"giou_object", "ciou", "num_objects"}
    assert figures["protocol"] == "generated_matched"
    assert [(b["above"], b["to"]) for b in figures["by_occlusion"]] == [
        (0, 0), (0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)
    ]  # fmt: skip
    assert figures == make_report().as_dict() == read_figures(tmp_path)


def test_one_json_line_per_object(tmp_path) -> None:
    report = make_report()
    report.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "objects.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert [row["status"] for row in rows] == ["paired"] * 3 + ["missed"] + ["paired"] * 2
    assert rows[4]["annotation_id"] == 54 and rows[4]["category"] == "café_cup"
    assert rows[4]["answer"] == "My [SEG] 4." and rows[4]["question"] == "What?"
    assert np.mean([row["amodal_iou"] for row in rows]) == pytest.approx(report.as_dict()["amodal"]["giou_object"])
    total = sum(row["amodal_intersection"] for row in rows) / sum(row["amodal_union"] for row in rows)
    assert total == pytest.approx(report.as_dict()["amodal"]["ciou"])


def test_main_table_has_the_papers_layout_and_the_reference_line() -> None:
    figures = make_report().as_dict()
    table = tables.main_table({"AURA": figures})
    assert table.groups == (("", 2), ("Amodal", 2), ("Visible", 2))
    assert table.columns == ("Method", "Protocol", "gIoU", "cIoU", "gIoU", "cIoU")
    keys = [("amodal", "giou_image"), ("amodal", "ciou"), ("visible", "giou_image"), ("visible", "ciou")]
    assert table.rows[0] == ("AURA", "generated_matched", *(f"{100 * figures[r][k]:.2f}" for r, k in keys))
    assert table.rows[1][0] == "  amodal := predicted visible"
    assert table.rows[1][2] == f"{100 * figures['amodal_from_visible']['giou_image']:.2f}"
    assert "gIoU over images (3 images, 6 answers, 6 objects" in table.title


def test_one_choice_of_what_giou_is_the_mean_over_and_all_three_beside_it(tmp_path) -> None:
    # Image 1: an answer with objects of IoU 1 and 0, an answer with an object of IoU 1/2. Image 2: an object of IoU 1.
    whole = np.ones((2, 2), bool)
    none, half = ~whole, np.array([[True, True], [False, False]])
    objects = [
        score_object(SegRecord(image, conversation, 0, index, 7, "bus"), MaskPair(whole, whole), MaskPair(guess, guess))
        for image, conversation, index, guess in ((1, 1, 0, whole), (1, 1, 1, none), (1, 2, 0, half), (2, 3, 0, whole))
    ]
    answers = [AnswerScore(image, conversation, 0, 1, 1) for image, conversation in ((1, 1), (1, 2), (2, 3))]
    report = Report("teacher_forced", tuple(objects), tuple(answers))
    expected = {"image": "75.00", "answer": "66.67", "object": "62.50"}  # (1/2 + 1)/2, (1/2 + 1/2 + 1)/3, (5/2)/4
    for over, giou in expected.items():
        report.write(tmp_path, giou=over)
        table = (tmp_path / "report.md").read_text()
        assert f"gIoU over {over}s (" in table and f"| AURA | teacher_forced | {giou} | 62.50 | {giou} |" in table
        assert "| 62.50 | 66.67 | 75.00 | 62.50 | 66.67 | 75.00 |" in table  # cIoU: (4 + 0 + 2 + 4) / 16


def test_terminal_shows_every_table_in_full() -> None:
    console = Console(file=io.StringIO(), width=60)
    reports = {"AURA": make_report().as_dict(), "LISA [7B]": make_report(seed=1).as_dict()}
    tables.show(reports, console)
    text = console.file.getvalue()
    assert "LISA [7B]" in text and "…" not in text
    for table in tables.all_tables(reports):
        assert table.title in text
        for row in table.rows:
            assert any(all(cell.strip() in line for cell in row) for line in text.splitlines()), row


def test_markdown_is_a_rectangular_table() -> None:
    text = tables.as_markdown(tables.main_table({"AURA": make_report().as_dict()}))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| Method | Protocol | Amodal gIoU | Amodal cIoU | Visible gIoU | Visible cIoU |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert len(lines) == 4 and {line.count("|") for line in lines} == {7}


def test_latex_is_balanced_and_escaped() -> None:
    for table in tables.all_tables({"A_B & 5%": make_report().as_dict()}):
        text = tables.as_latex(table)
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        assert r"A\_B \& 5\%" in text and r"generated\_matched" in text
        body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].replace(r"\&", "")
        assert {line.count("&") for line in body.strip().splitlines()} == {len(table.columns) - 1}
        assert text.count("{") == text.count("}")
    main = tables.as_latex(tables.main_table({"AURA": make_report().as_dict()}))
    assert r"\multicolumn{2}{c}{Amodal} & \multicolumn{2}{c}{Visible}" in main
    assert r"\cmidrule(lr){3-4} \cmidrule(lr){5-6}" in main


def test_csv_holds_every_figure_of_every_report(tmp_path) -> None:
    reports = {"AURA": make_report().as_dict(), "other": make_report(seed=1).as_dict()}
    write_tables(tmp_path, reports)
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["AURA", "other"]
    assert float(rows[1]["amodal.giou_object"]) == reports["other"]["amodal"]["giou_object"]
    assert float(rows[0]["by_occlusion.75-100.amodal_giou"]) == reports["AURA"]["by_occlusion"][4]["amodal_giou"]
    assert rows[0]["by_occlusion.0.num_objects"] == str(reports["AURA"]["by_occlusion"][0]["num_objects"])


def test_an_empty_report_shows_dashes() -> None:
    figures = Report("teacher_forced", (), ()).as_dict()
    assert tables.main_table({"AURA": figures}).rows[0][2:] == ("–",) * 4
    tables.show({"AURA": figures}, Console(file=io.StringIO()))


def test_a_report_of_one_kind_of_mask_shows_dashes_and_two_make_one_row(tmp_path) -> None:
    both, visible, amodal = (make_report(masks=masks) for masks in ("both", "visible", "amodal"))
    row = tables.main_table({"LISA": visible.as_dict()}).rows[0]
    assert row[2:] == ("–", "–", *tables.main_table({"x": both.as_dict()}).rows[0][4:])
    visible.write(tmp_path)
    tables.show({"LISA": read_figures(tmp_path)}, Console(file=io.StringIO()))
    assert len((tmp_path / "objects.jsonl").read_text().splitlines()) == 6
    expected = {**both.as_dict(), "occlusion_rate_mae": None, "visible_outside_amodal": None}
    assert combine(visible.as_dict(), amodal.as_dict()) == combine(amodal.as_dict(), visible.as_dict()) == expected
    other = {**amodal.as_dict(), "seg_count_accuracy": 0.123}
    assert combine(visible.as_dict(), other)["seg_count_accuracy"] is None


def test_reports_that_do_not_belong_together_are_refused() -> None:
    visible, amodal = (make_report(masks=masks).as_dict() for masks in ("visible", "amodal"))
    with pytest.raises(ValueError, match="both reports have visible masks"):
        combine(visible, make_report().as_dict())
    with pytest.raises(ValueError, match="num_objects 6 and 7"):
        combine(visible, {**amodal, "num_objects": 7})


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "is no report: protocol, visible"), ('{"protocol": 1}', "no report: visible")],
)
def test_a_wrong_report_file_is_explained(content, message, tmp_path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_figures(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        read_figures(tmp_path / "absent.json")


def test_merging_refuses_an_answer_scored_twice() -> None:
    with pytest.raises(AssertionError, match="twice"):
        Report.merge("generated_matched", [make_report(), make_report()])


def test_no_target_figures_stand_only_where_answers_have_no_object(tmp_path) -> None:
    plain = make_report()
    none = AnswerScore(9, 9, 0, 0, 0)
    mixed = Report(plain.protocol, plain.objects, (*plain.answers, none), "mixed")
    mixed.write(tmp_path, beside={"AURA": plain.as_dict()})
    title = "Answers that mark nothing, %"
    assert title in (tmp_path / "report.md").read_text() and title not in [table.title for table in plain.tables()]
    (table,) = [table for table in mixed.tables() if table.title == title]
    assert table.rows == (("mixed", "generated_matched", "1", "100.00", "83.33"),)  # 5 of 6 answers mark something
    (row,) = [
        row for row in csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())) if row["no_target.n_acc"]
    ]
    assert (row["method"], float(row["no_target.n_acc"]), float(row["no_target.t_acc"])) == ("mixed", 1, 5 / 6)


def test_no_target_figures_of_two_trainings_are_one_where_they_agree() -> None:
    none, some = AnswerScore(9, 9, 0, 0, 0), AnswerScore(9, 9, 0, 0, 1, predicted_area=3)
    seen, whole = make_report(masks="visible"), make_report(masks="amodal")
    silent, loud = (Report(whole.protocol, whole.objects, (*whole.answers, a)).as_dict() for a in (none, some))
    first = Report(seen.protocol, seen.objects, (*seen.answers, none)).as_dict()
    assert combine(first, silent)["no_target"] == first["no_target"]
    assert combine(first, loud)["no_target"] == {**first["no_target"], "n_acc": None}


def test_the_asked_mask_stands_only_where_questions_mean_one_kind(tmp_path) -> None:
    plain = make_report()
    kinds = ("visible", "amodal", "both")
    asking = [
        dataclasses.replace(o, true_asked=kinds[i % 3], predicted_asked=kinds[min(i, 2)])  # type: ignore[arg-type]
        for i, o in enumerate(plain.objects)
    ]
    report = Report(plain.protocol, tuple(asking), plain.answers, "asking")
    report.write(tmp_path, beside={"AURA": plain.as_dict()})
    title = "Which mask is asked for, % of objects"
    assert title in (tmp_path / "report.md").read_text() and title not in [table.title for table in plain.tables()]
    (table,) = [table for table in report.tables() if table.title == title]
    assert table.rows == (("asking", "generated_matched", "6", "66.67", "50.00", "50.00", "100.00", "33.33"),)
    assert json.loads((tmp_path / "report.json").read_text())["asked"]["accuracy"] == 4 / 6
    rows = [json.loads(line) for line in (tmp_path / "objects.jsonl").read_text().splitlines()]
    assert (rows[3]["asked"], rows[3]["predicted_asked"]) == ("visible", "both")
    assert all("asked" not in row for row in plain.object_rows())
    (row,) = [r for r in csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())) if r["asked.accuracy"]]
    assert row["method"] == "asking"
