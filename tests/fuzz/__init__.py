"""Damaged files by the million: every reader takes them or refuses them, and does nothing else.

python -m tests.fuzz                     every target, 100,000 cases each
python -m tests.fuzz gguf apr -n 1000    some targets, some cases
python -m tests.fuzz gguf --case 4711    one case again, with its traceback
python -m tests.fuzz.decoders            the decoders in C under sanitizers
"""
