"""``python -m aprtui`` is ``aprtui``."""

from aprtui.cli.main import entry

entry()
