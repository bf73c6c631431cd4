"""``python -m aprtui`` is ``aprtui``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder: what lies there is nobody's code (aprtui/child.py)

from aprtui.cli.main import entry

entry()
