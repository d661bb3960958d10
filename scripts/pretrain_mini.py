"""Pretrain the mini model's backbones on generated scenes (no download, no GPU).

    python scripts/pretrain_mini.py encoder --minutes 30 --threads 2     # SAM's image encoder alone
    python scripts/pretrain_mini.py sam     --minutes 40                 # the SAM-like backbone
    python scripts/pretrain_mini.py llava   --minutes 80                 # the CLIP-like tower, the Llama-like model
    python scripts/pretrain_mini.py llava   --minutes 50 --start-from data/mini_assets/backbones/llava   # goes on

Each starts from what the one before left. Scenes come from the "pretrain" stream (aura.mini.benchmark), never from the
benchmark's seeds or backgrounds; "val" scenes of another seed serve to measure. Each part keeps its scenes,
checkpoint and log under --work, continues from there when started again, and (but for the encoder) writes a Hugging
Face folder (float16) below --out every few minutes and at the end. The minutes are a budget: the learning rate
reaches zero when they are spent. On a busy or slow machine give more.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast, SamModel

from aura.files import write_text
from aura.mini.pretrain.cells import CellBatch, CellHead, Preprocess, Shares, cell_batches, evaluate_cells
from aura.mini.pretrain.llava import (
    LlavaBatches,
    LlavaPretrainer,
    evaluate_generation,
    evaluate_llava,
    export_llava,
    new_llava,
)
from aura.mini.pretrain.run import Metrics, Run, build_optimizers, train
from aura.mini.pretrain.sam import (
    SamPretrainer,
    evaluate_sam,
    export_sam,
    padded_cells,
    padded_pixels,
    sam_batches,
    sam_config,
    sam_loss,
)
from aura.mini.pretrain.scenes import ScenePool
from aura.mini.pretrain.text import conversations_about, template_text, train_tokenizer
from aura.mini.pretrain.tower import TowerPretrainer, squashed_pixels, squashed_shares, tower_config

ROOT = Path(__file__).resolve().parent.parent
VAL_SEED_SHIFT = 7_000_000
RECIPES = {"encoder": (32, 2.5e-3), "sam": (16, 1.5e-3), "tower": (32, 1e-3), "llava": (6, 3e-3)}
"""Images per step and peak learning rate."""
SAM_ADAM_ONLY = ("names", "head", "pos_embed")
TRAINED_BEFORE = {"vision_encoder": 0.4, "llava.": 0.7}
"""Factors on the rates of what an earlier stage has trained."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("encoder", "sam", "llava"), help="which part to pretrain")
    parser.add_argument("--minutes", type=float, default=40.0, help="time budget of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes, weights and order (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "data/mini_assets/backbones", help="receives sam/ or llava/")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/pretrain_mini", help="scenes, checkpoints and logs")
    parser.add_argument("--assets", type=Path, default=ROOT / "data/mini_assets", help="cutouts/ and backgrounds/")
    parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=20_000, help="distinct training scenes (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes composing scenes (default: %(default)s)")
    parser.add_argument("--tower-minutes", type=float, default=15.0, help="llava: the tower's share, trained first")
    parser.add_argument("--start-from", type=Path, help="llava: go on with this exported folder")
    parser.add_argument("--new-tower", action="store_true", help="... but begin its tower anew, from SAM's encoder")
    return parser.parse_args()


def category_names(assets: Path) -> list[str]:
    """The benchmark's categories in the order of their ids."""
    entries = json.loads((assets / "categories.json").read_text(encoding="utf-8"))
    return [entry["name"] for entry in sorted(entries, key=lambda entry: entry["id"])]


def scene_pools(arguments: argparse.Namespace) -> dict[str, ScenePool]:
    """The scenes to learn from ("pretrain") and to measure on ("val")."""
    wanted = (("pretrain", arguments.seed, arguments.scenes), ("val", arguments.seed + VAL_SEED_SHIFT, 200))
    return {
        split: ScenePool.build(
            arguments.work / f"scenes_{split}",
            arguments.assets,
            split=split,
            seed=seed,
            count=count,
            workers=arguments.workers,
        )
        for split, seed, count in wanted
    }


def pretrain_encoder(arguments: argparse.Namespace) -> None:
    """Train SAM's image encoder alone; the other parts start from its checkpoint."""
    task = CellTask(arguments, padded_pixels, padded_cells)
    model = SamPretrainer(sam_config(), len(task.categories))
    run = start_run(arguments, "encoder", model, SAM_ADAM_ONLY)

    def measure(batches: list[CellBatch]) -> Metrics:
        return evaluate_cells(model.features, model.head, batches)

    task.train(run, model.cell_loss, measure, stream=3, evaluate_every=120.0)


class CellTask:
    """What is where, patch by patch: the task of the encoder and of the tower, and the scenes to measure it on."""

    def __init__(self, arguments: argparse.Namespace, preprocess: Preprocess, shares: Shares) -> None:
        self.seed = arguments.seed
        self.categories, self.scenes = category_names(arguments.assets), scene_pools(arguments)
        self.preparation = {"preprocess": preprocess, "shares": shares}
        batches = self._batches("val", 50, np.random.default_rng(1))
        self.held_out = [next(batches) for _ in range(4)]

    def _batches(self, split: str, size: int, rng: np.random.Generator) -> Iterator[CellBatch]:
        return cell_batches(self.scenes[split], self.categories, batch_size=size, rng=rng, **self.preparation)

    def train(
        self,
        run: Run,
        loss: Callable[[CellBatch], tuple[torch.Tensor, Metrics]],
        measure: Callable[[list[CellBatch]], Metrics],
        *,
        stream: int,
        evaluate_every: float,
    ) -> None:
        """Spend the run's minutes; ``stream`` tells its order of scenes from that of other parts."""
        size = RECIPES[run.folder.name][0]
        train(
            run,
            self._batches("pretrain", size, np.random.default_rng((self.seed, run.step, stream))),
            lambda batch, progress: loss(batch),
            images_per_batch=size,
            evaluate=lambda: measure(self.held_out),
            export=lambda: None,
            evaluate_every=evaluate_every,
        )


def with_trained_encoder(arguments: argparse.Namespace, num_categories: int) -> SamPretrainer:
    """A new SAM with the encoder's checkpoint."""
    path = arguments.work / "encoder/checkpoint.pt"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; run 'python scripts/pretrain_mini.py encoder' first")
    model = SamPretrainer(sam_config(), num_categories)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["module"])
    return model


def pretrain_sam(arguments: argparse.Namespace) -> None:
    """Train and export the SAM-like backbone."""
    categories, scenes = category_names(arguments.assets), scene_pools(arguments)
    model, batch_size = with_trained_encoder(arguments, len(categories)), RECIPES["sam"][0]
    run = start_run(arguments, "sam", model, SAM_ADAM_ONLY, slower=TRAINED_BEFORE)
    held_out = sam_batches(scenes["val"], categories, batch_size=20, rng=np.random.default_rng(1))
    held_out_batches = [next(held_out) for _ in range(10)]
    rng = np.random.default_rng((arguments.seed, run.step))
    train(
        run,
        sam_batches(scenes["pretrain"], categories, batch_size=batch_size, rng=rng),
        lambda batch, progress: sam_loss(model, batch),
        images_per_batch=batch_size,
        evaluate=lambda: evaluate_sam(model, held_out_batches),
        export=lambda: export_sam(model, arguments.out / "sam"),
    )
    keep_log(run, arguments.out / "sam", (arguments.work / "encoder/log.jsonl").read_text(encoding="utf-8"))


def pretrain_tower(arguments: argparse.Namespace, start: CLIPVisionModel | None = None) -> CLIPVisionModel:
    """Train the CLIP-like tower alone, for its share of the minutes; from the exported SAM's weights or its own."""
    task = CellTask(arguments, squashed_pixels, squashed_shares)
    encoder = SamModel.from_pretrained(arguments.out / "sam", dtype=torch.float32).vision_encoder
    head = CellHead(encoder.config.output_channels, len(task.categories))
    if start is None:
        model = TowerPretrainer.from_encoder(tower_config(), encoder, head, task.held_out[0].pixels)
    else:
        model = TowerPretrainer(start, encoder.neck, head)
    run = start_run(arguments, "tower", model, ("head", "embedding"), minutes=arguments.tower_minutes)
    task.train(run, model.loss, model.measure, stream=1, evaluate_every=120.0)
    return model.tower


def own_tokenizer(arguments: argparse.Namespace, scenes: ScenePool) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on conversations about the first scenes; kept beside the checkpoint."""
    folder = arguments.work / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        words = sorted({word for name in category_names(arguments.assets) for word in name.split()})
        first = range(min(600, len(scenes)))
        talks = [talk for i in first for talk in conversations_about(scenes.objects(i), i, arguments.seed)]
        train_tokenizer([template_text(talk) for talk in talks], words).save_pretrained(str(folder))
    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def pretrain_llava(arguments: argparse.Namespace) -> None:
    """Train the tower, then projector and language model on it, or go on with trained ones; export them."""
    categories, scenes = category_names(arguments.assets), scene_pools(arguments)
    slower, earlier = None, ""
    if arguments.start_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(arguments.start_from))
        llava = LlavaForConditionalGeneration.from_pretrained(arguments.start_from, dtype=torch.float32)
        slower, earlier = TRAINED_BEFORE, (arguments.start_from / "pretrain_log.jsonl").read_text(encoding="utf-8")
        tower = pretrain_tower(arguments, None if arguments.new_tower else llava.model.vision_tower)
        llava.model.vision_tower.load_state_dict(tower.state_dict())
    else:
        tokenizer = own_tokenizer(arguments, scenes["pretrain"])
        llava = new_llava(pretrain_tower(arguments), tokenizer)
    earlier += (arguments.work / "tower/log.jsonl").read_text(encoding="utf-8")
    minutes = arguments.minutes - arguments.tower_minutes
    model, batch_size = LlavaPretrainer(llava, categories, tokenizer), RECIPES["llava"][0]
    adam_only = ("head", "grounding", "embedding", "embed_tokens")
    run = start_run(arguments, "llava", model, adam_only, slower=slower, minutes=minutes)
    patches = llava.config.image_seq_length
    makers = {name: LlavaBatches(pool, categories, tokenizer, patches) for name, pool in scenes.items()}
    held_out = [makers["val"].batch([(i, False) for i in range(at, at + 20)], seed=1) for at in range(0, 100, 20)]
    train(
        run,
        makers["pretrain"].stream(batch_size, np.random.default_rng((arguments.seed, run.step, 2))),
        lambda batch, progress: model.loss(batch),
        images_per_batch=batch_size,
        evaluate=lambda: evaluate_llava(model, held_out, tokenizer, categories),
        export=lambda: export_llava(model, tokenizer, arguments.out / "llava"),
    )
    run.log("generation", evaluate_generation(arguments.out / "llava", makers["val"], categories))
    run.save()
    keep_log(run, arguments.out / "llava", earlier)


def start_run(
    arguments: argparse.Namespace,
    name: str,
    model: torch.nn.Module,
    adam_only: tuple[str, ...],
    *,
    slower: Mapping[str, float] | None = None,
    minutes: float = 0.0,
) -> Run:
    """A run under ``--work``, continued where its checkpoint stands."""
    lr = RECIPES[name][1]
    optimizers = build_optimizers(model, lr=lr, adam_only=adam_only, slower=slower)
    run = Run(arguments.work / name, model, optimizers, minutes or arguments.minutes)
    if run.resume():
        print(f"{name}: continuing at step {run.step}, {run.seconds / 60:.1f} minutes spent", flush=True)
    else:
        settings = {"seed": arguments.seed, "budget": run.minutes, "lr": lr}
        run.log("start", settings | {"parameters": sum(p.numel() for p in model.parameters())})
    return run


def keep_log(run: Run, folder: Path, before: str) -> None:
    """Put the log beside the weights, after that of the stage before."""
    write_text(folder / "pretrain_log.jsonl", before + (run.folder / "log.jsonl").read_text(encoding="utf-8"))


def main() -> None:
    arguments = parse_arguments()
    environment.prepare()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "encoder": pretrain_encoder,
        "sam": pretrain_sam,
        "llava": pretrain_llava,
    }
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
