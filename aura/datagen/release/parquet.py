"""A split as Parquet files that Hugging Face ``datasets`` loads with its pictures: ``load_dataset(folder)``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from aura.datagen.release.selection import ReleasedImage
from aura.formats.amodal_reason_seg import annotation_record
from aura.types import AmodalObject

IMAGES_PER_FILE = 4000
IMAGES_PER_GROUP = 100


def _value(kind: str) -> dict[str, str]:
    return {"dtype": kind, "_type": "Value"}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


_RLE = {"size": _list(_value("int32")), "counts": _value("string")}
FEATURES: dict[str, Any] = {
    "image": {"_type": "Image"},
    "image_id": _value("int64"),
    "file_name": _value("string"),
    "height": _value("int32"),
    "width": _value("int32"),
    "objects": _list(
        {
            "id": _value("int64"),
            "category": _value("string"),
            "supercategory": _value("string"),
            "bbox": _list(_value("float64")),
            "visible_bbox": _list(_value("float64")),
            "occlusion_rate": _value("float64"),
            "occluded_by": _list(_value("int64")),
            "amodal": _RLE,
            "visible": _RLE,
        }
    ),
    "conversations": _list(
        {
            "id": _value("int64"),
            "turns": _list(
                {
                    "question": _value("string"),
                    "answer": _value("string"),
                    "objects": _list(_value("int64")),
                    "asked": _list(_value("string")),
                }
            ),
            "provenance": _value("string"),
        }
    ),
}
"""The columns as ``datasets`` describes them; masks are COCO run lengths, ``provenance`` is JSON."""


def write_parquet(folder: Path, split: str, number: int, images: Iterator[ReleasedImage]) -> list[Path]:
    """Write the ``number`` images of a split in files of at most :data:`IMAGES_PER_FILE`, a few in memory at a time.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError(
            "the Parquet files need pyarrow; install it (pip install pyarrow), or set export.parquet=false"
        ) from error
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pyarrow.schema([(name, _arrow(pyarrow, f)) for name, f in FEATURES.items()], metadata=metadata)
    folder.mkdir(parents=True, exist_ok=True)
    files = max(1, -(-number // IMAGES_PER_FILE))
    written = []
    for index in range(files):
        path = folder / f"{split}-{index:05d}-of-{files:05d}.parquet"
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            ours = islice(images, IMAGES_PER_FILE)
            while rows := [_row(image) for image in islice(ours, IMAGES_PER_GROUP)]:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
        written.append(path)
    return written


def _arrow(pyarrow: Any, feature: dict[str, Any]) -> Any:
    """The Arrow type of a feature."""
    kind = feature.get("_type")
    if kind == "Value":
        return pyarrow.type_for_alias(feature["dtype"])
    if kind == "List":
        return pyarrow.list_(_arrow(pyarrow, feature["feature"]))
    if kind == "Image":
        return pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.struct([(name, _arrow(pyarrow, inner)) for name, inner in feature.items()])


def _row(released: ReleasedImage) -> dict[str, Any]:
    image = released.stored.image
    return {
        "image": {"bytes": released.stored.picture.read_bytes(), "path": Path(image.file_name).name},
        "image_id": image.image_id,
        "file_name": image.file_name,
        "height": image.height,
        "width": image.width,
        "objects": [_object(o, image.image_id) for o in image.objects],
        "conversations": [
            {
                "id": conversation.id,
                "turns": [
                    {
                        "question": turn.question,
                        "answer": turn.answer,
                        "objects": list(turn.objects),
                        "asked": list(turn.asked),
                    }
                    for turn in conversation.turns
                ],
                "provenance": json.dumps(dict(conversation.provenance), sort_keys=True),
            }
            for conversation in released.conversations
        ],
    }


def _object(obj: AmodalObject, image_id: int) -> dict[str, Any]:
    record = annotation_record(obj, image_id, 0)
    return {
        "id": obj.id,
        "category": obj.category,
        "supercategory": obj.supercategory,
        "bbox": record["bbox"],
        "visible_bbox": record["visible_bbox"],
        "occlusion_rate": record["occlude_rate"],
        "occluded_by": list(obj.occluded_by),
        "amodal": obj.amodal,
        "visible": obj.visible,
    }
