"""What an assistant knows of the images that it talks about: :class:`Picture`, and the :class:`Album` of the last ones.

Legend: T image features, C channels of CLIP.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext

import torch

from aura.data.conversations import ConversationTokenizer
from aura.data.processor import ImageInputs
from aura.machine.beside import Crew, LateTask, StreamTask, Task
from aura.model import AuraModel
from aura.model.key_cache import Prefix
from aura.model.segmentation import Canvas
from aura.types import ImageFeatures

KEPT_IMAGES = 8
KEPT_BYTES = 2**30
"""Of the prefixes and canvases of all kept images. An image of a 7B model takes 0.3 GB in bf16."""


class Picture:
    """One image, for all conversations about it. What an album keeps of it is computed when it is first needed.

    Args:
        model: In evaluation mode.
        clip_features: [1, T, C].
        sam: SAM's features, which masks alone wait for.
        album: That keeps it.
    """

    def __init__(self, model: AuraModel, clip_features: torch.Tensor, sam: Task, album: Album | None = None) -> None:
        self.model, self.clip_features, self.sam = model, clip_features, sam
        self.album = album
        self.held_prefix: tuple[int, Prefix] | None = None  # and the weights that read it
        self._canvas: Canvas | None = None

    @classmethod
    def of(cls, model: AuraModel, features: ImageFeatures) -> Picture:
        """An image whose features are there."""
        return cls(model, features.clip_features, LateTask(lambda: features.sam_embeddings))

    def prefix(self) -> Prefix | None:
        """The keys and values of the prompt up to the end of the image; ``None`` where they are not kept."""
        return None if self.album is None else self.album.prefix_of(self)

    def canvas(self) -> Canvas:
        """What its masks are drawn on; waits for SAM, and raises what went wrong there."""
        canvas = self._canvas
        if canvas is None:
            canvas = self.model.canvas(self.sam.result(), self.clip_features)
            if self.album is not None:
                self._canvas = canvas
                self.album.trim()
        return canvas

    def quiet(self) -> AbstractContextManager[None]:
        """Within ``with``, no image is encoded beside: the caller is in a hurry."""
        return nullcontext() if self.album is None else self.album.crew.quiet()

    def forget(self) -> None:
        """Leave the album: conversations go on, and keep nothing in common."""
        self.album = self.held_prefix = self._canvas = None

    @property
    def num_bytes(self) -> int:
        """Of what is kept."""
        prefix = 0 if self.held_prefix is None else self.held_prefix[1].num_bytes
        return prefix + (0 if self._canvas is None else self._canvas.num_bytes)


class Album:
    """The last images, so that whoever comes back to one starts where its first question begins.

    Args:
        model: In evaluation mode. Where its weights change, everything is computed anew.
        text: Writes the prompts.
        count: Most images.
        max_bytes: Of all they keep. The one in use is dropped last, but is dropped where it alone is too large.
    """

    def __init__(
        self, model: AuraModel, text: ConversationTokenizer, count: int = KEPT_IMAGES, max_bytes: int = KEPT_BYTES
    ) -> None:
        self.model, self.text = model, text
        self.count, self.max_bytes = count, max_bytes
        self.crew = Crew()
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._system: tuple[int, Prefix | None] | None = None
        self._weights = 0
        self._lock = threading.RLock()

    def picture(self, inputs: ImageInputs) -> Picture:
        """The image's picture: CLIP's features are computed here, SAM's when someone starts it."""
        key = _content(inputs)
        with self._lock:
            if (weights := weights_now(self.model)) != self._weights:
                self._weights = weights
                self._drop(list(self._pictures))
            known = self._pictures.get(key)
            if known is not None:
                self._pictures.move_to_end(key)
                return known
        clip = self.model.mllm.encode_images(inputs.clip_pixels[None].to(self.model.device))
        picture = Picture(self.model, clip, self._encoding(inputs.sam_pixels[None]), self)
        with self._lock:
            self._pictures[key] = picture
            self.trim()
        return picture

    def prefix_of(self, picture: Picture) -> Prefix | None:
        """Read, or kept; the system prompt, which all images share, is read once."""
        weights = weights_now(self.model)
        if picture.held_prefix is not None and picture.held_prefix[0] == weights:
            return picture.held_prefix[1]
        ids = self.text.start_prompt("?")
        image = [place for place, token in enumerate(ids) if token == self.text.image_token_id]
        if self._system is None or self._system[0] != weights:
            self._system = weights, self.model.read_prefix(ids[: image[0]]) if image[0] else None
        prefix = self.model.read_prefix(
            ids[: image[-1] + 1], clip_features=picture.clip_features, after=self._system[1]
        )
        if prefix is not None:
            picture.held_prefix = weights, prefix
            self.trim()
        return prefix

    def trim(self) -> None:
        """Drop the images used longest ago until the others are within both limits."""
        with self._lock:
            sizes = {key: picture.num_bytes for key, picture in self._pictures.items()}
            over: list[bytes] = []
            for key in self._pictures:
                left = len(sizes) - len(over)
                if left <= self.count and sum(sizes.values()) <= self.max_bytes:
                    break
                over.append(key)
                sizes[key] = 0
            self._drop(over)

    def _drop(self, keys: list[bytes]) -> None:
        for key in keys:
            self._pictures.pop(key).forget()

    def _encoding(self, pixels: torch.Tensor) -> Task:
        """SAM's features of pixels [1, 3, S, S]: beside the caller, where the whole model is on one device."""
        model, device = self.model, self.model.device

        def work() -> torch.Tensor:
            return model.encode_sam(pixels.to(device))

        if {parameter.device for parameter in model.parameters()} != {device}:
            return LateTask(work)
        if device.type == "cuda":
            return StreamTask(work, device)
        return self.crew.task(work, model.image_encoder) if device.type == "cpu" else LateTask(work)


def weights_now(model: torch.nn.Module) -> int:
    """Changes with the weights: where they lie, and how often they were written to."""
    return hash(tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()))


def _content(inputs: ImageInputs) -> bytes:
    """Tells what the encoders see of an image from what they see of others."""
    digest = hashlib.blake2b(digest_size=16)
    for pixels in (inputs.clip_pixels, inputs.sam_pixels):
        digest.update(pixels.contiguous().numpy().data)
    return digest.digest()
