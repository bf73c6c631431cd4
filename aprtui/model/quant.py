"""Block types by the name that the model ring knows them by; the table is ``formats.blocks``."""

from __future__ import annotations

from aprtui.formats.blocks import BLOCK_TYPES, BY_GGML_CODE, BlockType, stored_bytes

__all__ = ["BLOCK_TYPES", "BY_GGML_CODE", "BlockType", "stored_bytes"]
