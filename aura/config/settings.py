"""Every setting of AURA, as frozen dataclasses that check themselves.

The defaults are the paper's recipe for the 7B model (arXiv 2503.10225, section 5.1) and, where the paper is silent,
LISA's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aura.config.data_settings import DataSettings
from aura.config.require import require

Precision = Literal["fp32", "bf16", "fp16"]
Protocol = Literal["teacher_forced", "generated_order", "generated_matched"]
ConditionForm = Literal["residual", "scaled", "film", "token"]
SpatialForm = Literal["decoder", "image", "features", "detached"]
GiouOver = Literal["image", "answer", "object"]
"""What gIoU is the mean over; in an answer and an image, the objects are averaged first."""

SAME_NUMBERS = {
    "model": {"allow_random"},
    "data": {"feature_cache", "num_workers", "prefetch"},
    "loss": set[str](),
    "train": {
        *("output_dir", "resume", "log_every", "checkpoint_every", "keep_last", "tensorboard", "loggers"),
        *("offload_optimizer", "gradient_checkpointing", "timeout_minutes", "max_skipped_steps"),
    },
}
"""Settings of where a run lies, what it tells and how it stores its work: a rerun may change them."""

OPTIONAL_TERMS = ("pointing", "intent")
"""Loss terms of models that have the part of the same name (``model.pointing``, ``model.intent``); not the paper's."""

REDUCE_BUCKET = 50_000_000
"""Elements of the buckets in which DeepSpeed reduces gradients on GPUs; they are allocated whole."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on the language model's attention.

    Args:
        enabled: Train adapters; ``false`` is the paper's Table 3, first row.
        r: Rank.
        alpha: Scale; the update is multiplied by ``alpha / r``.
        dropout: Dropout before the adapter, in [0, 1).
        targets: Names of the linear layers inside each decoder layer of the language model.
    """

    enabled: bool = True
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        require(self.r > 0, f"model.lora.r must be positive, got {self.r}")
        require(0 <= self.dropout < 1, f"model.lora.dropout must be in [0, 1), got {self.dropout}")
        require(len(self.targets) > 0, "model.lora.targets is empty; name layers, or set model.lora.enabled to false")


@dataclass(frozen=True)
class ModelSettings:
    """Which parts AURA is made of and where their weights come from.

    Args:
        mllm: Folder of the multimodal language model (LLaVA) with its tokenizer.
        vision_tower: Folder of CLIP, where the language model's folder does not hold it (original LLaVA v1); for a bare
            language model also of DINOv2 or SigLIP.
        vision_image_size: Side of the tower's input in pixels, where it is not the tower's own; its table of positions
            is resampled. Only where the projector is new.
        vision_feature_layer: Which of the tower's hidden states the projector reads: -1 is the last, ``null`` the last
            but one (LLaVA's). Only where the projector is new.
        sam: SAM weights: a Hugging Face folder, or an official ``.pth`` file.
        init_from: An AURA export or a LISA checkpoint to start from instead of the three above.
        prompt_template: Conversation template: ``llava_v1``, ``llava_llama_2``, ...
        seg_state: Hidden state that stands for ``[SEG]``: ``before`` it (it predicts it, as in LISA) or ``at`` it.
        occlusion_condition: Use the occlusion condition encoder E_OC (and its occlusion rate).
        spatial_occlusion: Use the spatial occlusion encoder E_SO.
        condition_form: How E_OC makes e_oa of e_r: a ``residual`` MLP, one ``scaled`` channel by channel, ``film``
            (factors and shifts), or a second prompt (``token``) beside e_r. The paper is silent.
        spatial_form: What E_SO reads: the masks on the ``decoder``'s grid, or at the size of SAM's input (``image``),
            the image's ``features`` too, or the masks without a gradient to them (``detached``). The paper is silent.
        train_embeddings: Train the token embeddings and the language model's head, as LISA does; ``seg`` trains
            their row of ``[SEG]`` alone: on a few hundred images, words keep their meaning.
        train_projector: Train LLaVA's projector; needed where it is new (a language model paired with a CLIP tower).
        image_token_merge: Join so many by so many neighbouring CLIP features into one image token: 2 leaves a quarter
            of them. Only where the projector is new.
        image_places: Add to each image token where it lies, in the code of SAM's point prompts (trained like the
            projector), so that ``[SEG]`` learns sooner where to point. Only where the projector is new.
        rescale_states: Standardise the ``[SEG]`` states before E_P's projection, by what they are on the training data
            before the first step. Some language models have a few dimensions far larger than the others, and the
            projection learns slowly from them. Only where it is new.
        pointing: Let each ``[SEG]`` state also attend to the image tokens, and add SAM's prompt for the place that it
            attends to (:mod:`aura.model.pointing`). For small language models; the paper has no such part. Needs a
            tower that sees the image where SAM has it (``clip_resize: corner``).
        intent: Tell from each ``[SEG]`` state whether the question means the visible mask, the amodal one, or both.
        masks: Masks to predict: ``both`` (AURA), or one kind with one decoder (the methods AURA is compared with).
        quantize: Hold the language model's frozen linear layers in 8 or 4 bits (needs bitsandbytes).
        lora: Adapters.
        allow_random: Start even if a part that should be pretrained is not.
    """

    mllm: str | None = None
    vision_tower: str | None = None
    vision_image_size: int | None = None
    vision_feature_layer: int | None = None
    sam: str | None = None
    init_from: str | None = None
    prompt_template: str = "llava_v1"
    seg_state: Literal["before", "at"] = "before"
    occlusion_condition: bool = True
    spatial_occlusion: bool = True
    condition_form: ConditionForm = "residual"
    spatial_form: SpatialForm = "decoder"
    train_embeddings: bool | Literal["seg"] = True
    train_projector: bool = False
    image_token_merge: int = 1
    image_places: bool = False
    rescale_states: bool = False
    pointing: bool = False
    intent: bool = False
    masks: Literal["both", "visible", "amodal"] = "both"
    quantize: Literal["none", "int8", "int4"] = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)
    allow_random: bool = False

    def __post_init__(self) -> None:
        size = self.vision_image_size
        require(size is None or size > 0, f"model.vision_image_size must be positive, got {size}")
        require(self.image_token_merge > 0, f"model.image_token_merge must be positive, got {self.image_token_merge}")
        require(
            self.masks == "both" or not self.spatial_occlusion,
            f"model.masks is {self.masks}, but the spatial occlusion encoder reads both masks; set "
            "model.spatial_occlusion to false",
        )
        require(
            self.masks != "visible" or not self.occlusion_condition,
            "model.masks is visible, but the occlusion condition encoder guides the amodal decoder; set "
            "model.occlusion_condition to false",
        )


@dataclass(frozen=True)
class LossSettings:
    """Weights in Eq. 4 of the terms of Eq. 1 to 3 (all 1 in the paper).

    With ``text`` alone above 0, no mask is drawn: what a model that is new to images says can be learnt first.

    Args:
        text: Cross-entropy of the answer's tokens.
        visible_bce: Binary cross-entropy of the visible mask.
        visible_dice: Dice loss of the visible mask.
        amodal_bce: Binary cross-entropy of the amodal mask.
        amodal_dice: Dice loss of the amodal mask.
        occlusion_rate: Squared error of the occlusion rate.
        spatial: 3-class cross-entropy of the spatial occlusion map.
        pointing: Cross-entropy of the image token that a state points at, which should show the visible part; where
            ``model.pointing`` asks for it. Not the paper's.
        intent: Cross-entropy of the asked mask, where ``model.intent`` asks for it; not the paper's.
        mask_resolution: Compare masks at the ``image``'s size (LISA) or on the mask ``decoder``'s grid (cheaper).
    """

    text: float = 1.0
    visible_bce: float = 1.0
    visible_dice: float = 1.0
    amodal_bce: float = 1.0
    amodal_dice: float = 1.0
    occlusion_rate: float = 1.0
    spatial: float = 1.0
    pointing: float = 1.0
    intent: float = 1.0
    mask_resolution: Literal["image", "decoder"] = "image"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            require(key == "mask_resolution" or value >= 0, f"loss.{key} must not be negative, got {value}")


@dataclass(frozen=True)
class TrainSettings:
    """The training run.

    Args:
        output_dir: Run folder: resolved config, logs, checkpoints, export, report.
        steps: Optimizer steps (each consumes micro_batch_size x accumulation x GPUs images).
        micro_batch_size: Images per GPU and forward pass.
        accumulation: Forward passes per optimizer step.
        align_steps: Steps, before the first, in which a new projector alone learns to make words of image tokens; 0
            leaves that to the training. See :mod:`aura.train.align`.
        lr: Peak learning rate.
        betas: AdamW's betas.
        weight_decay: AdamW's weight decay.
        warmup_steps: Optimizer steps of linear warm-up; then linear decay to 0 (DeepSpeed's WarmupDecayLR).
        grad_clip: Largest gradient norm; 0 does not clip.
        precision: Of the frozen language model and encoders: ``fp16`` for V100, ``bf16`` for A100 and newer, ``fp32``
            on CPU. What is trained is in fp32 in any case.
        max_skipped_steps: In fp16, optimizer steps in a row that may be skipped because their gradients overflowed;
            then the run stops.
        autocast: ``bf16`` multiplies the language model's matrices, and those of masks on SAM's own grid, in bf16 and
            leaves the fp32 weights as they are; ``auto`` does so on a CPU with bf16 units (half the time; without them
            it would take many times as long).
        zero_stage: DeepSpeed ZeRO stage, 0 to 3.
        offload_optimizer: Keep the optimizer's state in CPU memory (ZeRO 1-3).
        gradient_checkpointing: Recompute the language model's activations in the backward pass: less memory, more time.
            ``auto`` does so where the plan (:mod:`aura.plan`) says that the run would fill the device otherwise.
        seed: Seed of weights, data order and dropout.
        deterministic: The same numbers again on the same machine, bit for bit, also on a GPU: operations that add in
            any order are replaced or refused, and nothing is multiplied in TF32. Slower. A CPU needs it not.
        log_every: Optimizer steps between log lines.
        validate_every: Optimizer steps between validations; 0 never validates.
        validate_images: Images per validation; ``null`` takes the whole split.
        checkpoint_every: Optimizer steps between checkpoints; 0 keeps only the last.
        keep_last: Checkpoints kept besides the best.
        best_metric: Dotted key of the report that chooses the best checkpoint (higher is better).
        resume: ``auto`` continues the newest checkpoint of the run folder, a path continues that one, ``none`` starts
            anew and refuses a run folder that has checkpoints.
        overfit_one_batch: Take the first optimizer step's images again and again: a check that the model can learn.
        tensorboard: Write TensorBoard files beside the JSONL log.
        loggers: Services that get the same numbers: ``wandb`` (Weights & Biases), ``mlflow``. Their packages must be
            installed.
        timeout_minutes: How long a rank waits for the others in one joint act, such as the export of the first; a rank
            that has died is noticed at once.
    """

    output_dir: str = "runs/aura_7b"
    steps: int = 5000
    micro_batch_size: int = 1
    accumulation: int = 4
    align_steps: int = 0
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    grad_clip: float = 1.0
    precision: Precision = "fp16"
    max_skipped_steps: int = 20
    autocast: Literal["off", "bf16", "auto"] = "off"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    seed: int = 0
    deterministic: bool = False
    log_every: int = 10
    validate_every: int = 500
    validate_images: int | None = 100
    checkpoint_every: int = 500
    keep_last: int = 2
    best_metric: str = "amodal.giou_object"
    resume: str = "auto"
    overfit_one_batch: bool = False
    tensorboard: bool = True
    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()
    timeout_minutes: int = 120

    def __post_init__(self) -> None:
        for key in (
            *("steps", "micro_batch_size", "accumulation", "max_skipped_steps", "log_every", "keep_last"),
            "timeout_minutes",
        ):
            require(getattr(self, key) > 0, f"train.{key} must be positive, got {getattr(self, key)}")
        for key in (
            "align_steps",
            "warmup_steps",
            "validate_every",
            "checkpoint_every",
            "grad_clip",
            "weight_decay",
            "seed",
        ):
            require(getattr(self, key) >= 0, f"train.{key} must not be negative, got {getattr(self, key)}")
        require(self.lr > 0, f"train.lr must be positive, got {self.lr}")
        require(all(0 <= beta < 1 for beta in self.betas), f"train.betas must be in [0, 1), got {list(self.betas)}")
        images = self.validate_images
        require(images is None or images > 0, f"train.validate_images must be positive or null, got {images}")
        require(
            not self.offload_optimizer or self.zero_stage > 0,
            "train.offload_optimizer needs ZeRO; set train.zero_stage to 1, 2 or 3",
        )
        require(
            self.warmup_steps < self.steps,
            f"train.warmup_steps ({self.warmup_steps}) must be smaller than train.steps ({self.steps})",
        )


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        require(
            self.model.quantize == "none" or self.train.zero_stage < 3,
            f"model.quantize {self.model.quantize} cannot be split over GPUs by ZeRO stage 3; set train.zero_stage 2",
        )
        require(
            not self.train.align_steps or self.model.train_projector,
            "train.align_steps trains the projector; set model.train_projector to true, or leave it 0",
        )
        require(
            self.asks_for_objects or not self.train.validate_every,
            "loss asks for text alone, and a validation would choose the best checkpoint by masks that nobody trains; "
            "set train.validate_every to 0",
        )
        require(
            self.model.train_embeddings != "seg" or not self.train.weight_decay,
            "model.train_embeddings is seg, but train.weight_decay would shrink all other words; set it to 0",
        )
        metric, masks = self.train.best_metric, self.model.masks
        require(
            masks == "both" or metric.partition(".")[0] not in {"visible", "amodal"} - {masks},
            f"train.best_metric is {metric}, which a model of {masks} masks lacks; set it to {masks}.giou_object",
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Those of the terms that the model has."""
        absent = {name for name in OPTIONAL_TERMS if not getattr(self.model, name)}
        return {key: value for key, value in vars(self.loss).items() if key not in {"mask_resolution", *absent}}

    @property
    def asks_for_objects(self) -> bool:
        """Whether any loss term of this model counts besides ``text``."""
        return any(weight > 0 for name, weight in self.loss_weights.items() if name != "text")
