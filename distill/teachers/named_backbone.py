"""The backbone that a recipe names."""

from __future__ import annotations

from distill.teachers.backbone import Backbone
from distill.teachers.lite_backbone import LITE2, LiteBackbone


def backbone_named(name: str) -> Backbone:
    """Load the package's own backbone, or a Hugging Face one by folder or hub name. InputError."""
    if name == LITE2:
        return LiteBackbone()
    from distill.teachers.hugging_face import HuggingFaceBackbone  # noqa: PLC0415 (rarely wanted)

    return HuggingFaceBackbone(name)
