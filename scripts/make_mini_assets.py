#!/usr/bin/env python
"""How the committed pictures in ``data/mini_assets`` were made.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python scripts/make_mini_assets.py --emoji package --photos PHOTOS --out data/mini_assets

``PHOTOS`` is a folder with the photographs named in ``data/mini_assets/ATTRIBUTION.md``.
Nobody needs to run this again; it stands here so that the assets can be checked and extended.
"""

from aura import environment

environment.command_line(__name__)

import argparse
import base64
import json
import re
import tempfile
import unicodedata
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

CUTOUT_SIDE = 128
PHOTO_SIDE = 288
PHOTO_QUALITY = 78

PANORAMAS = ("apartment", "city", "dawn", "esplanade", "forest", "hall", "lab", "lobby", "night", "park", "sunrise")
PANORAMAS += ("sunset", "venice", "warehouse", "workshop")

# category: (supercategory, emoji code points). COCO's own names where COCO has the class.
CATEGORIES: dict[str, tuple[str, str]] = {
    "bicycle": ("vehicle", "1f6b2"),
    "car": ("vehicle", "1f697 1f699 1f695"),
    "motorcycle": ("vehicle", "1f3cd 1f6f5"),
    "airplane": ("vehicle", "2708 1f6e9"),
    "bus": ("vehicle", "1f68c 1f68e"),
    "train": ("vehicle", "1f683 1f682"),
    "truck": ("vehicle", "1f69a 1f69b 1f6fb"),
    "boat": ("vehicle", "26f5 1f6a4 1f6f6"),
    "traffic light": ("outdoor", "1f6a6 1f6a5"),
    "bird": ("animal", "1f426 1f99c 1f986"),
    "cat": ("animal", "1f408"),
    "dog": ("animal", "1f415 1f429"),
    "horse": ("animal", "1f40e"),
    "sheep": ("animal", "1f411 1f40f"),
    "cow": ("animal", "1f404 1f402"),
    "elephant": ("animal", "1f418"),
    "backpack": ("accessory", "1f392"),
    "umbrella": ("accessory", "2602 1f302"),
    "handbag": ("accessory", "1f45c"),
    "suitcase": ("accessory", "1f9f3 1f4bc"),
    "hat": ("accessory", "1f3a9 1f452 1f9e2"),
    "shoe": ("accessory", "1f45f 1f45e 1f97e"),
    "sports ball": ("sports", "26bd 1f3c0 1f3d0"),
    "kite": ("sports", "1fa81"),
    "skateboard": ("sports", "1f6f9"),
    "tennis racket": ("sports", "1f3be"),
    "wine glass": ("kitchen", "1f377"),
    "cup": ("kitchen", "2615 1f964"),
    "banana": ("food", "1f34c"),
    "apple": ("food", "1f34e 1f34f"),
    "sandwich": ("food", "1f96a"),
    "orange": ("food", "1f34a"),
    "broccoli": ("food", "1f966"),
    "carrot": ("food", "1f955"),
    "hot dog": ("food", "1f32d"),
    "pizza": ("food", "1f355"),
    "donut": ("food", "1f369"),
    "cake": ("food", "1f382 1f370"),
    "chair": ("furniture", "1fa91 1f4ba"),
    "couch": ("furniture", "1f6cb"),
    "potted plant": ("furniture", "1fab4"),
    "bed": ("furniture", "1f6cf"),
    "tv": ("electronic", "1f4fa"),
    "laptop": ("electronic", "1f4bb"),
    "cell phone": ("electronic", "1f4f1"),
    "book": ("indoor", "1f4d5 1f4d7 1f4d8"),
    "clock": ("indoor", "23f0 1f570"),
    "scissors": ("indoor", "2702"),
    "teddy bear": ("indoor", "1f9f8"),
    "guitar": ("instrument", "1f3b8 1fa95"),
    "violin": ("instrument", "1f3bb"),
    "trumpet": ("instrument", "1f3ba"),
    "drum": ("instrument", "1f941 1fa98"),
    "hammer": ("tool", "1f528"),
    "key": ("tool", "1f511 1f5dd"),
    "bell": ("tool", "1f514"),
}


# Parts of a render that do not belong to the object: what is kept, as fractions (left, top, right, bottom).
KEPT: dict[str, tuple[float, float, float, float]] = {
    "1f6cb": (0.0, 0.5, 0.779, 1.0),  # without the lamp
    "26f5": (0.0, 0.0, 1.0, 0.745),  # boats without the water
    "1f6a4": (0.0, 0.0, 1.0, 0.715),
    "1f6f6": (0.0, 0.0, 1.0, 0.715),
}
LARGEST_PART_ONLY = {"1f3be"}  # the racket without its ball


def emoji_name(code_point: str) -> str:
    """``"1f697"`` -> ``"automobile"``: the Unicode name as a file name."""
    return re.sub(r"[^a-z0-9]+", "_", unicodedata.name(chr(int(code_point, 16))).lower()).strip("_")


def make_cutout(source: Path, code_point: str) -> Image.Image:
    """The object alone, cropped to its alpha box, its longest side CUTOUT_SIDE pixels."""
    picture = Image.open(source).convert("RGBA")
    if code_point in KEPT:
        sides = zip(KEPT[code_point], picture.size * 2, strict=True)
        picture = picture.crop(tuple(round(fraction * side) for fraction, side in sides))
    if code_point in LARGEST_PART_ONLY:
        pixels = np.array(picture)
        _, labels, stats, _ = cv2.connectedComponentsWithStats((pixels[..., 3] > 0).astype(np.uint8))
        pixels[labels != 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])] = 0
        picture = Image.fromarray(pixels)
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 12)).getbbox())
    scale = CUTOUT_SIDE / max(picture.size)
    # resizing with premultiplied alpha keeps the colour of transparent pixels out of the edges
    picture = picture.convert("RGBa").resize(
        tuple(max(1, round(side * scale)) for side in picture.size), Image.Resampling.LANCZOS
    )
    return picture.convert("RGBA")


def make_cutouts(emoji_dir: Path, out: Path) -> None:
    """Write ``cutouts/<category>/<name>.png`` and ``categories.json``."""
    categories = []
    for index, (category, (supercategory, code_points)) in enumerate(CATEGORIES.items(), 1):
        categories.append({"id": index, "name": category, "supercategory": supercategory})
        for code_point in code_points.split():
            matches = [emoji_dir / "assets" / f"{code_point}{end}.webp" for end in ("", "-fe0f")]
            source = next((path for path in matches if path.is_file()), None)
            if source is None:
                raise ValueError(f"{emoji_dir}: no picture for {code_point} ({category})")
            target = out / "cutouts" / category / f"{emoji_name(code_point)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            make_cutout(source, code_point).save(target, optimize=True)
    (out / "categories.json").write_text(json.dumps(categories, indent=1) + "\n")


def make_photos(photo_dir: Path, out: Path) -> None:
    """Write every photo of ``photo_dir`` at PHOTO_SIDE on its longest side."""
    for source in sorted(photo_dir.iterdir()):
        photo = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
        photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
        save_photo(photo, source.stem.lower().replace("_", "-"), out)


def make_views(panorama_dir: Path, out: Path) -> None:
    """Write two opposite views of every panorama (HDR, equirectangular) in the npm package ``@pmndrs/assets``.

    Needs the package OpenEXR, which nothing else of the project uses.
    """
    import OpenEXR

    for name in PANORAMAS:
        script = (panorama_dir / "hdri" / f"{name}.exr.js").read_text()
        encoded = re.search(r"base64,([A-Za-z0-9+/=]+)", script)
        with tempfile.NamedTemporaryFile(suffix=".exr") as file:
            file.write(base64.b64decode(encoded[1]))
            file.flush()
            with OpenEXR.File(file.name) as panorama:
                channels = panorama.channels()
                rgb = next(channels[key].pixels for key in ("RGB", "RGBA") if key in channels)
        picture = tone_map(rgb[..., :3].astype(np.float32))
        height, width = picture.shape[:2]
        for index in range(2):
            # the horizon stands a little above the middle; the poles, where the projection stretches, stay out
            view = picture[height // 6 : height * 5 // 6, index * width // 2 : (index + 1) * width // 2]
            photo = Image.fromarray(view).resize((PHOTO_SIDE, PHOTO_SIDE * view.shape[0] // view.shape[1]))
            save_photo(photo, f"panorama-{name}__{index + 1}", out)


def tone_map(radiance: np.ndarray) -> np.ndarray:
    """HDR radiance float32 [h, w, 3] to display values uint8 with the ACES curve of Narkowicz."""
    radiance = np.nan_to_num(radiance, nan=0.0, posinf=100.0).clip(0, 100)
    light = radiance * (0.22 / np.exp(np.log(radiance.mean(-1) + 1e-3).mean()))
    curve = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    picture = (255 * np.clip(curve, 0, 1) ** (1 / 2.2)).astype(np.uint8)
    # lossy compression rings around lamps: black specks where all is white
    filled = cv2.morphologyEx(picture, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    speck = (filled.min(-1) > 225) & (picture.min(-1) < 120)
    speck = cv2.dilate(speck.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    picture[speck] = filled[speck]
    return picture


def save_photo(photo: Image.Image, name: str, out: Path) -> None:
    """Write ``backgrounds/<name>.jpg``."""
    (out / "backgrounds").mkdir(parents=True, exist_ok=True)
    photo.save(out / "backgrounds" / f"{name}.jpg", quality=PHOTO_QUALITY, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, help="unpacked npm package @lobehub/fluent-emoji-3d")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--panoramas", type=Path, help="unpacked npm package @pmndrs/assets")
    parser.add_argument("--out", type=Path, default=Path("data/mini_assets"))
    args = parser.parse_args()
    if args.emoji:
        make_cutouts(args.emoji, args.out)
    if args.photos:
        make_photos(args.photos, args.out)
    if args.panoramas:
        make_views(args.panoramas, args.out)


if __name__ == "__main__":
    main()
