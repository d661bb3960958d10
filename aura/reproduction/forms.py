"""Table 2 with other forms of E_OC and E_SO, about which the paper is silent: trials, not rows of the paper.

Each form stands alone and beside the present form of the other module, under Table 2's own rows, which are trained once
for all tables.
"""

from __future__ import annotations

from typing import get_args

from aura.config import ConditionForm, SpatialForm
from aura.reproduction.paper import NOT_IN_PAPER, TABLES, PaperRow, PaperTable, Variant


def _rows(module: str, name: str, forms: tuple[str, ...], alone: str) -> tuple[PaperRow, ...]:
    """Two rows for each form but the present one, the first of ``forms``.

    Args:
        module: As Table 2 calls it.
        name: Of the layers, ``forms/NAME_FORM.yaml``.
        forms: The settings.
        alone: The layer that leaves the other module out.
    """
    other = "E_SO" if module == "E_OC" else "E_OC"
    rows = []
    for form in forms[1:]:
        layer = f"forms/{name}_{form}.yaml"
        only = Variant(f"only_{name}_{form}", (alone, layer))
        rows.append(PaperRow(f"{module} ({form}) only", NOT_IN_PAPER, (only,)))
        rows.append(PaperRow(f"{module} ({form}) and {other}", NOT_IN_PAPER, (Variant(f"{name}_{form}", (layer,)),)))
    return tuple(rows)


def _table(module: str, name: str, forms: tuple[str, ...]) -> PaperTable:
    two = TABLES[2]
    rows = _rows(module, name, forms, f"ablation/only_{name}.yaml")
    return PaperTable(f"2, forms of {module}", two.title, (*two.rows, *rows), two.reference)


FORM_TABLES: dict[str, PaperTable] = {
    "condition_forms": _table("E_OC", "condition", get_args(ConditionForm)),
    "spatial_forms": _table("E_SO", "spatial", get_args(SpatialForm)),
}
