"""Charts: every number that is there is drawn, the same numbers give the same bytes, and nothing to draw is nothing."""

import math
import xml.etree.ElementTree as ET

from aura.drawing.charts import bars, curves, scatter

POINTS = {"a < b": [(1, 2.0), (2, None), (3, math.nan), (4, 1.0)], "never": [(1, None)]}


def test_curves_leave_out_what_is_no_number():
    svg = curves(POINTS, title="A $ & B", x="step", y="loss")
    texts = ["".join(node.itertext()) for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]
    assert "a < b" in texts and "never" not in texts and "A $ & B" in texts and {"step", "loss"} <= set(texts)
    assert svg == curves(POINTS, title="A $ & B", x="step", y="loss")


def test_nothing_to_draw_is_no_picture():
    assert curves({"a": [(1, None)]}, title="t", x="x", y="y") == ""
    assert scatter([], title="t", x="x", y="y") == bars(["0 %"], {"a": [None]}, title="t", x="x", y="y") == ""


def test_many_points_weigh_little():
    svg = scatter([(i / 5000, i / 5000) for i in range(5000)], title="t", x="x", y="y")
    assert ET.fromstring(svg) is not None and len(svg) < 100_000


def test_bars_have_a_label_for_each_place():
    svg = bars(["0 %", "0-25 %"], {"amodal": [0.5, None], "visible": [0.25, 0.75]}, title="t", x="x", y="y")
    assert all(label in svg for label in ("0 %", "0-25 %", "amodal", "visible"))
