"""Quantised checkpoints: several stored tensors that are one weight, made one tensor again.

Between the container and the families: a reader of safetensors lists what is stored, ``assembled``
puts together what belongs together, and all that follows (roles, plans, comparing, listing) sees
plain weights ``x.weight`` of their logical shape. How a coding lies in the file stands in
``scaled``, ``packed`` and ``fourbit``; ``coding`` says it to the engine.
"""

from aprtui.formats.quantised.assemble import assembled, refuse_unreadable

__all__ = ["assembled", "refuse_unreadable"]
