"""Tables 1 to 5 of the paper, and which runs make each row.

Li, Yoon, Lee, Lin: "Unveiling the Invisible: Reasoning Complex Occlusions Amodally with AURA", arXiv 2503.10225. Every
number is a percentage on the test split of AmodalReasonSeg.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import NamedTuple

CITATION = (
    "Li, Yoon, Lee, Lin: Unveiling the Invisible: Reasoning Complex Occlusions Amodally with AURA, arXiv 2503.10225"
)


class Scores(NamedTuple):
    """The four figures of every table, in its order, in percent."""

    amodal_giou: float
    amodal_ciou: float
    visible_giou: float
    visible_ciou: float


NOT_IN_PAPER = Scores(nan, nan, nan, nan)


@dataclass(frozen=True)
class Variant:
    """One training: its name (also its folder's) and the layers in ``configs/`` that it puts over the base."""

    name: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperRow:
    """A row of a table. ``variants`` are the trainings that make it (two, of one kind of mask each, make LISA's); none
    for methods whose code is elsewhere. ``note`` is said under a table that has them."""

    name: str
    paper: Scores
    variants: tuple[Variant, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table; ``reference`` is the row that the others are compared with. ``number`` also says what is not the paper's
    in it."""

    number: int | str
    title: str
    rows: tuple[PaperRow, ...]
    reference: str

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All trainings of the table, the shared ones once."""
        return tuple(dict.fromkeys(variant for row in self.rows for variant in row.variants))


AURA = Variant("aura")
BASELINE = Variant("baseline", ("ablation/baseline.yaml",))
LISA = (
    Variant("lisa_visible", ("baselines/lisa_visible.yaml",)),
    Variant("lisa_amodal", ("baselines/lisa_amodal.yaml",)),
)
ONE_SEG = "one [SEG] an answer, for the object it names first (section 5.2); its other objects count as missed"
WHOLE = Scores(47.76, 47.32, 51.31, 55.38)
WITHOUT_BOTH = Scores(43.55, 43.92, 48.96, 48.63)

TABLES: dict[int, PaperTable] = {
    1: PaperTable(
        1,
        "Amodal reasoning segmentation",
        (
            PaperRow("VRSP", Scores(15.18, 16.55, 17.41, 19.75)),
            PaperRow("C2F-Seg", Scores(18.62, 18.25, 19.12, 20.31)),
            PaperRow("SD-Amodal", Scores(20.87, 20.09, 21.52, 23.10)),
            PaperRow("LISA", Scores(23.05, 22.87, 24.39, 26.81), LISA, ONE_SEG),
            PaperRow("LLM-Seg", Scores(24.62, 23.06, 25.19, 27.94)),
            PaperRow("GSVA", Scores(42.30, 42.87, 47.01, 48.22)),
            PaperRow("OMG-LLaVA", Scores(43.92, 44.21, 49.41, 49.38)),
            PaperRow("GLaMM", Scores(45.75, 46.82, 49.93, 54.14)),
            PaperRow("PSALM", Scores(46.81, 47.03, 50.64, 55.19)),
            PaperRow("Baseline", WITHOUT_BOTH, (BASELINE,)),
            PaperRow("AURA", WHOLE, (AURA,)),
        ),
        reference="Baseline",
    ),
    2: PaperTable(
        2,
        "Occlusion modules",
        (
            PaperRow("neither", WITHOUT_BOTH, (BASELINE,)),
            PaperRow(
                "E_OC only",
                Scores(44.86, 44.07, 49.57, 49.10),
                (Variant("only_condition", ("ablation/only_condition.yaml",)),),
            ),
            PaperRow(
                "E_SO only",
                Scores(46.95, 45.60, 50.68, 53.72),
                (Variant("only_spatial", ("ablation/only_spatial.yaml",)),),
            ),
            PaperRow("E_OC and E_SO", WHOLE, (AURA,)),
        ),
        reference="neither",
    ),
    3: PaperTable(
        3,
        "LoRA",
        (
            PaperRow(
                "without LoRA",
                Scores(20.84, 21.03, 25.43, 27.95),
                (Variant("no_lora", ("ablation/no_lora.yaml",)),),
            ),
            PaperRow("with LoRA", WHOLE, (AURA,)),
        ),
        reference="without LoRA",
    ),
    4: PaperTable(
        4,
        "Multimodal language model",
        (
            PaperRow("LLaVA-7B", WHOLE, (AURA,)),
            PaperRow("LLaVA-13B", Scores(49.41, 49.74, 54.13, 57.97), (Variant("mllm_13b", ("mllm/13b.yaml",)),)),
            PaperRow(
                "LLaVA-Llama2-13B",
                Scores(52.34, 52.95, 58.42, 60.21),
                (Variant("mllm_llama2_13b", ("mllm/llama2_13b.yaml",)),),
            ),
        ),
        reference="LLaVA-7B",
    ),
    5: PaperTable(
        5,
        "Vision backbone",
        (
            PaperRow(
                "SAM ViT-B (93.7M)", Scores(42.85, 42.76, 46.92, 50.12), (Variant("sam_vit_b", ("sam/vit_b.yaml",)),)
            ),
            PaperRow(
                "SAM ViT-L (312M)", Scores(45.23, 45.31, 49.18, 53.71), (Variant("sam_vit_l", ("sam/vit_l.yaml",)),)
            ),
            PaperRow("SAM ViT-H (641M)", WHOLE, (AURA,)),
        ),
        reference="SAM ViT-B (93.7M)",
    ),
}
