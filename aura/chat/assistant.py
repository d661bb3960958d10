"""Ask AURA about an image: :class:`Assistant`, and the conversation behind it.

Legend: n ``[SEG]`` of an answer, H W pixels of the image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import Cache

from aura.chat.album import KEPT_IMAGES, Album, Picture
from aura.data.answers import object_names
from aura.data.photos import open_photo
from aura.data.processor import SETTINGS_FILE, Processor
from aura.machine.devices import check_bf16, check_build, inference_dtype
from aura.masks import encode_rle, mask_area, mask_to_bbox
from aura.model import AuraModel, Generation
from aura.model.configuration import DTYPES
from aura.model.quantize import Quantization, check_kernels, check_quantization, quantization_config
from aura.model.readout import decode_answers
from aura.targets import occlusion_rate
from aura.types import SEG_TOKEN, ImageFeatures, ImageGeometry, Reply, ReplyObject
from aura.weights import hub
from aura.weights.files import check_weight_files

ImageSource = str | Path | Image.Image | np.ndarray
OnText = Callable[[str], None]
OnObject = Callable[[ReplyObject], None]


class Assistant:
    """A loaded AURA model that answers questions about images.

    ::

        assistant = Assistant.from_pretrained("runs/mini/export")
        reply = assistant.ask("street.jpg", "What could I ride, and what is in the way?")
        chat = assistant.conversation("street.jpg")
        chat.ask("What could I ride?"), chat.ask("And what hides it?")

    Args:
        model: Put into evaluation mode.
        processor: The one the model was trained with.
        max_new_tokens: Longer answers are cut, and say so (``Reply.truncated``).
        kept_images: Of so many images, the last ones, what questions have in common is kept (at most 1 GiB).

    Raises:
        ValueError: A model and a processor that disagree on ``[SEG]`` or on the image's tokens.
    """

    def __init__(
        self, model: AuraModel, processor: Processor, *, max_new_tokens: int = 256, kept_images: int = KEPT_IMAGES
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be positive, got {max_new_tokens}")
        for name in ("seg_token_id", "eos_token_id", "image_token_id", "num_image_tokens"):
            wanted, found = getattr(model.config, name), getattr(processor.text, name)
            if wanted != found:
                raise ValueError(
                    f"the model's {name} is {wanted}, the processor's is {found}; they do not belong together"
                )
        self.model = model.train(False)
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.album = Album(self.model, processor.text, kept_images)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        quantize: Quantization = "none",
        device_map: str | dict[str, Any] | None = None,
        max_new_tokens: int = 256,
    ) -> Assistant:
        """Load an export folder, or the ``export`` of a run folder.

        Args:
            folder: What ``train_ds.py`` wrote: ``RUN/export``, or ``RUN`` itself; or the name of an export on the hub.
            device: Such as ``cuda:0``; by default the first GPU if there is one, else the CPU.
            dtype: ``fp32``, ``bf16`` or ``fp16`` for the language model (SAM and the mask decoders always compute in
                fp32); by default fp32 on a CPU, and on a GPU what the run was trained in, with fp16 for bf16 on a GPU
                without bf16 units (V100).
            quantize: ``int8`` or ``int4``: the language model's linear layers in so many bits (needs bitsandbytes).
            device_map: Spread the model over several devices instead of ``device``: ``auto``, or parts to devices, as
                Accelerate understands it. Layers of the language model may lie on the CPU or the disk, other parts
                may not lie on the disk, nor on the CPU beside a GPU.
            max_new_tokens: As for the class.

        Raises:
            ValueError: No export there, an incomplete one, a device or dtype this machine does not have, or
                quantisation without bitsandbytes.
        """
        export = find_export(hub.local_folder(folder, "checkpoint"))
        if device_map is not None and device is not None:
            raise ValueError(f"give either device ({device}) or device_map ({device_map}), not both")
        place = _device(device, everywhere=device_map is not None)
        kind = _dtype(dtype, place, export)
        check_quantization(quantize, place)
        options: dict[str, Any] = {"dtype": kind, "output_loading_info": True}
        if device_map is not None or quantize != "none":
            options["device_map"] = {"": place} if device_map is None else device_map
            options["quantization_config"] = quantization_config(quantize, kind)
        try:
            check_weight_files(export, "its weights", required=False)
        except ValueError as error:
            raise ValueError(f"{export} cannot be loaded ({error}); export the run again") from error
        try:
            model, info = AuraModel.from_pretrained(export, **options)
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{export} cannot be loaded ({reason}); export the run again") from error
        if missing := sorted(info["missing_keys"]):
            # Silently random parts are the commonest cause of blank masks.
            raise ValueError(f"{export} lacks {len(missing)} weights, such as {missing[0]}; export the run again")
        check_kernels(model)
        if "device_map" in options:
            _check_spread(model)
        else:
            model = model.to(place)
        return cls(model, Processor.from_pretrained(export), max_new_tokens=max_new_tokens)

    def ask(
        self, image: ImageSource, question: str, on_text: OnText | None = None, on_object: OnObject | None = None
    ) -> Reply:
        """Answer one question about one image.

        Args:
            image: File, PIL image, or array (see :func:`aura.data.photos.open_photo`).
            question: In the user's words.
            on_text: Called with each new piece of the answer while it is written; the pieces joined are ``Reply.text``.
            on_object: Called with each object as soon as its masks are decoded, in the order of ``Reply.objects``.

        Raises:
            ValueError: An image that cannot be read, or a question that is empty or too long.
        """
        session = self._session(image)
        try:
            return session.ask(question, on_text, on_object)
        finally:
            session.close()

    def conversation(self, image: ImageSource) -> ChatSession:
        """A conversation of several rounds about one image; errors as :meth:`ask`.

        The image is read here. SAM's encoder, which masks alone need, goes on beside whatever comes next. Its errors
        are those of the first answer that has a mask.
        """
        session = self._session(image)
        session.picture.prefix()
        session.picture.sam.start()
        return session

    def _session(self, image: ImageSource) -> ChatSession:
        inputs = self.processor.image(open_photo(image))
        picture = self.album.picture(inputs)
        return ChatSession(self.model, self.processor, picture, inputs.geometry, inputs.pil, self.max_new_tokens)


class ChatSession:
    """The state of one conversation: its picture, the tokens so far, and the key-value cache over them.

    Args:
        model: In evaluation mode.
        processor: Writes prompts and reads answers.
        picture: Of an album, or the frozen encoders' outputs for the image (B = 1).
        geometry: How the image lies in SAM's square.
        image: RGB, upright; what the masks refer to.
        max_new_tokens: Most tokens of one answer.
    """

    def __init__(
        self,
        model: AuraModel,
        processor: Processor,
        picture: Picture | ImageFeatures,
        geometry: ImageGeometry,
        image: Image.Image | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        self.model, self.processor = model, processor
        self.picture = picture if isinstance(picture, Picture) else Picture.of(model, picture)
        self.geometry, self.image = geometry, image
        self.max_new_tokens = max_new_tokens
        self.turns: list[tuple[str, Reply]] = []
        self._ids: list[int] = []  # the whole conversation, without the </s> of its last answer
        self._cache: Cache | None = None

    def reset(self) -> None:
        """Forget the questions and answers, keep the image."""
        self.turns, self._ids, self._cache = [], [], None

    def close(self) -> None:
        """Stop what goes on beside for the image, such as its encoder; the next question would begin it anew."""
        self.picture.sam.stop()

    def ask(self, question: str, on_text: OnText | None = None, on_object: OnObject | None = None) -> Reply:
        """Answer the next question; arguments and errors as :meth:`Assistant.ask`.

        Whatever interrupts it (also Ctrl-C) leaves the conversation as it was before the question, and nothing runs on.
        """
        question = self.processor.text.defuse(question)
        prompts = self.processor.text
        new = prompts.followup(question, closed=False) if self._ids else prompts.start_prompt(question)
        ids = [*self._ids, *new]
        room = self._room_after(ids)
        try:
            return self._answer(question, ids, min(self.max_new_tokens, room), on_text, on_object)
        except BaseException:
            self.close()
            raise

    def _answer(
        self, question: str, ids: list[int], max_new_tokens: int, on_text: OnText | None, on_object: OnObject | None
    ) -> Reply:
        """To the conversation's tokens ``ids``, which end with the question."""
        text = self.processor.text.new_answer()
        with ExitStack() as hurry:
            hurry.enter_context(self.picture.quiet())

            def on_token(token_id: int) -> None:
                piece = text.push(token_id)
                if not piece:
                    return
                if on_text is not None:
                    on_text(piece)
                hurry.close()  # the first word is out: SAM's turn, beside the others
                self.picture.sam.start()

            # The cache grows in place, and an interruption may leave its layers unequal: it counts again at the end.
            cache, self._cache = self._cache_of_prefix(ids) if self._cache is None else self._cache, None
            # Of the conversation, the model has not read the question yet, and whatever ended the last answer.
            seen = cache.get_seq_length() if cache is not None else 0
            generation = self.model.generate_answer(
                torch.tensor([ids[seen:]], device=self.model.device),
                clip_features=self.picture.clip_features if seen == 0 else None,
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                on_token=on_token,
            )
        objects = []
        for found in read_objects(self.model, generation, text.text, self.picture, self.geometry):
            objects.append(found)
            if on_object is not None:
                on_object(found)
        reply = Reply(text.text, tuple(objects), generation.truncated)
        answer = generation.token_ids
        turns = [*self.turns, (question, reply)]
        ids = [*ids, *(answer if generation.truncated else answer[:-1])]
        # Ctrl-C comes at calls, never between plain assignments: all of the turn is kept, or nothing.
        cache = generation.past_key_values
        self.turns, self._ids, self._cache = turns, ids, cache
        return reply

    def _cache_of_prefix(self, ids: list[int]) -> Cache | None:
        prefix = self.picture.prefix()
        return prefix.new_cache(self.model.config.get_text_config()) if prefix and prefix.begins(ids) else None

    def _room_after(self, ids: list[int]) -> int:
        limit = int(self.model.config.get_text_config().max_position_embeddings)
        if len(ids) >= limit:
            raise ValueError(
                f"the conversation has {len(ids)} tokens with this question, and the model reads at most {limit}; "
                "start a new one (/reset)"
            )
        return limit - len(ids)


def read_objects(
    model: AuraModel, generation: Generation, text: str, picture: Picture, geometry: ImageGeometry
) -> Iterator[ReplyObject]:
    """Decode the objects of a generated answer, one by one: three at once take an eighth less, and come all at the end.

    Args:
        model: In evaluation mode.
        generation: The answer, with its n ``[SEG]`` states.
        text: The answer's text, with n ``[SEG]`` marks.
        picture: Of the image; waited for if n > 0.
        geometry: How the image lies in SAM's square.
    """
    names = object_names(text)
    states = generation.seg_hidden
    assert len(names) == len(states), f"{len(names)} {SEG_TOKEN} marks but {len(states)} states: {text!r}"
    for index, name in enumerate(names):
        ((visible, amodal, rate, asked),) = decode_answers(model, states[index : index + 1], picture.canvas(), geometry)
        if rate is None and visible is not None and amodal is not None:
            rate = float(occlusion_rate(visible & amodal, amodal))
        yield ReplyObject(name, visible, amodal, rate, asked or "both")


def reply_record(reply: Reply) -> dict[str, Any]:
    """A reply as JSON can hold it: masks as COCO RLE, boxes [x, y, width, height] and areas in pixels.

    ``bbox`` and ``area`` are the amodal mask's, as in COCOA-cls. Null stands for what the model does not predict.
    ``asked`` is the mask that the question means.
    """

    def of(mask: np.ndarray | None, measure: Callable[[np.ndarray], Any]) -> Any:
        return None if mask is None else measure(mask)

    return {
        "text": reply.text,
        "truncated": reply.truncated,
        "objects": [
            {
                "name": obj.name,
                "asked": obj.asked,
                "occlusion_rate": obj.occlusion_rate,
                "visible": of(obj.visible, encode_rle),
                "amodal": of(obj.amodal, encode_rle),
                "visible_bbox": of(obj.visible, mask_to_bbox),
                "bbox": of(obj.amodal, mask_to_bbox),
                "visible_area": of(obj.visible, mask_area),
                "area": of(obj.amodal, mask_area),
            }
            for obj in reply.objects
        ],
    }


def find_export(folder: str | Path) -> Path:
    """The export in ``folder``: itself, or its ``export``; ValueError says what is wrong."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"the checkpoint folder {folder} does not exist; give a run folder, its export, or OWNER/NAME on the hub"
        )
    for candidate in (folder, folder / "export"):
        if (candidate / SETTINGS_FILE).is_file():
            if not (candidate / "config.json").is_file():
                raise ValueError(f"{candidate} has no config.json; export the run again")
            return candidate
    raise ValueError(
        f"neither {folder} nor {folder / 'export'} is an AURA export ({SETTINGS_FILE} is missing); "
        "give the folder of a finished run"
    )


def _device(device: str | torch.device | None, *, everywhere: bool = False) -> torch.device:
    """The device to use, for which the installed torch has code; ``everywhere`` looks at all GPUs."""
    if device is None or device == "auto":
        place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            place = torch.device(device)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    every = range(torch.cuda.device_count()) if everywhere and place.type == "cuda" else ()
    for each in [torch.device("cuda", index) for index in every] or [place]:
        check_build(each)
    return place


def _check_spread(model: AuraModel) -> None:
    """Refuse a device map whose offloaded parts are read other than by their own ``forward``, which alone fetches them.

    Raises:
        ValueError: With the parts.
    """
    places = {name: str(place) for name, place in (getattr(model, "hf_device_map", None) or {}).items()}
    on_gpu = any(place not in ("cpu", "disk", "meta") for place in places.values())
    away = {"disk", "meta"} | ({"cpu"} if on_gpu else set())
    if wrong := [name for name, place in places.items() if place in away and ".layers." not in name]:
        raise ValueError(
            f"the device map leaves {', '.join(wrong)} outside the GPUs, where only layers of the language model may "
            "lie; quantise the model (int4), use more GPUs, or run it on the CPU"
        )


def _dtype(dtype: str | torch.dtype | None, device: torch.device, export: Path) -> torch.dtype:
    """The precision to compute in: what is asked for, else the one that ``export`` was trained in."""
    if dtype is None or dtype == "auto":
        return inference_dtype(_saved_dtype(export), device)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        dtype = DTYPES[dtype]
    if dtype == torch.bfloat16:
        check_bf16(device, "choose dtype fp16")
    return dtype


def _saved_dtype(export: Path) -> torch.dtype | None:
    """Of the language model's weights, as the export's ``config.json`` says."""
    name = json.loads((export / "config.json").read_text(encoding="utf-8")).get("dtype")
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) else None
