"""The meaning of a service's refusal: it concerns one image, every image (a setting, the key), or this moment only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aura.datagen.records import FailureReason, GenerationStopped
from aura.datagen.service.reading import storable
from aura.datagen.service.settings import ApiSettings

_POLICY = re.compile(
    r"content_(?:policy|filter)|content management policy|moderation|flagged|safety system", re.IGNORECASE
)
_QUOTA = re.compile(r"insufficient[_ ](?:\w+ )?(?:quota|balance|funds|credits?)", re.IGNORECASE)
_TOO_LONG = re.compile(r"context[ _](?:length|window)|too long|too many tokens|reduce the length", re.IGNORECASE)
_BLIND = re.compile(
    r"(?:not|n't) (?:\w+ )?(?:support|accept|allow|handle)\w* (?:\w+ ){0,3}(?:images?|image_url|vision|multi-?modal)\b|"
    r"(?:images?|image_url|vision|multi-?modal)(?:[ _](?!format|size|type|dimension)\w+){0,3} (?:(?:is|are) )?"
    r"(?:not |un)(?:supported|available|enabled|allowed)|"
    r"missing data required for image input|not a (?:multi-?modal|vision)",
    re.IGNORECASE,
)
_MODEL = re.compile(
    r"model_not_found|(?:unknown|invalid|no such|unsupported|incorrect) model|"
    r"model\b.{0,120}?(?:not (?:\w+ )?(?:found|exist|available|loaded|valid|supported)|does(?: not|n't) exist|unknown)",
    re.IGNORECASE | re.DOTALL,
)
_SETTING = re.compile(r"(?:unsupported|unknown|invalid)_(?:parameter|value|field)|extra_forbidden", re.IGNORECASE)
_LIMIT = re.compile(r"max_(?:completion_|output_|new_)?tokens", re.IGNORECASE)
_FORM = re.compile(
    r"response_format|json_schema|json_object|json mode|structured output|guided|grammar|schema", re.IGNORECASE
)


@dataclass(frozen=True)
class Refusal:
    """An error as a service states it; ``status`` is ``None`` where there is none."""

    status: int | None
    message: str
    code: str = ""
    param: str = ""

    @classmethod
    def read(cls, status: int | None, body: Any, otherwise: str = "") -> Refusal:
        """From an error's body, in the forms that OpenAI, vLLM, Ollama, llama.cpp and others give it."""
        error = body.get("error", body) if isinstance(body, Mapping) else body
        known = error if isinstance(error, Mapping) else {}
        message = known.get("message") or known.get("detail") or otherwise or (error if error else "")
        code, param = (storable(str(known.get(key) or "")) for key in ("code", "param"))
        return cls(
            status,
            storable(" ".join(str(message).split()))[:500],
            code or storable(str(known.get("type") or "")),
            param,
        )

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or self.status in (408, 409, 429) or self.status >= 500

    def described(self) -> tuple[FailureReason, str, bool]:
        """(reason, detail, retryable) as a failure of the image that met it."""
        if self._is_policy():
            return "refusal", f"the service refused the request: {self.message}", False
        return "http", f"HTTP {self.status}: {self.message}" if self.status else self.message, self.retryable

    def remedy(self, settings: ApiSettings) -> str | None:
        """What to change where no request can succeed; ``None`` where this may concern one image only."""
        # Some services write an error where an answer belongs, without a status.
        status, text = self.status or 400, f"{self.code} {self.param} {self.message}"
        if self._is_policy():
            return None
        if status == 402 or (status in (403, 429) and _QUOTA.search(text)):
            return "the account's quota is used up; add credit and run again, nothing is lost"
        if status in (401, 403):
            return f"check the key in {settings.api_key_env}"
        if _BLIND.search(text):
            return f"{settings.model} reads no pictures here; choose a model, or a server, that does"
        if status in (404, 405):
            return f"check base_url and the model name ({settings.model})"
        if status not in (400, 415, 422, 501) or _TOO_LONG.search(text):
            return None
        return self._setting(text, settings)

    def _setting(self, text: str, settings: ApiSettings) -> str | None:
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
        if _LIMIT.search(text):
            return (
                f"set generator.api.output_limit_field to {other[settings.output_limit_field]}, or lower "
                f"max_output_tokens ({settings.max_output_tokens})"
            )
        if settings.structured != "none" and _FORM.search(text):
            weaker = "json_object or none" if settings.structured == "json_schema" else "none"
            return f"set generator.api.structured to {weaker}; the answer is checked all the same"
        for name in ("temperature", "seed"):
            if getattr(settings, name) is not None and re.search(rf"\b{name}\b", text, re.IGNORECASE):
                return f"change generator.api.{name} ({getattr(settings, name)}), or leave it out"
        if _MODEL.search(text):
            return f"check base_url and the model name ({settings.model})"
        if _SETTING.search(text):
            return "change the setting under generator.api that it names"
        return None

    def _is_policy(self) -> bool:
        return self.status in (400, 403) and bool(_POLICY.search(f"{self.code} {self.message}"))


def raise_if_hopeless(refusal: Refusal, settings: ApiSettings) -> None:
    """Raise :class:`GenerationStopped`, with the remedy, where no request can succeed."""
    remedy = refusal.remedy(settings)
    if remedy is not None:
        raise GenerationStopped(f"{refusal.described()[1]}; {remedy}")
