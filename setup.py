"""What pyproject.toml cannot say: what is in C, and the README as it is read alone."""

import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup


def in_c(name: str, headers: tuple[str, ...], *options: str) -> Extension:
    """``aprtui.NAME``; without a C compiler Python does the same by another way."""
    source = Path("aprtui", *name.split("."))
    return Extension(
        f"aprtui.{name}",
        [f"{source}.c"],
        depends=[str(source.with_name(header)) for header in headers],
        extra_compile_args=["-O3", *options],
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        py_limited_api=True,
        optional=True,
    )


def described() -> str:
    """The README as PyPI shows it: paths of the repository are its addresses there."""
    urls = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]["urls"]
    home, text = urls["Homepage"], Path("README.md").read_text("utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{home}/raw/main/", text)
    return re.sub(r"(?<!!)(\[[^]!]*\]\()(?!https?:|#)", rf"\1{home}/blob/main/", text)


# One wheel for Python 3.11 and all later ones: what is in C keeps to its stable interface.
setup(
    long_description=described(),
    long_description_content_type="text/markdown",
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    ext_modules=[
        in_c("engine._native", ("_native_decoders.h",), "-ffp-contract=off"),
        in_c("engine._row_sums", ("_row_sums_kernel.h",)),
        in_c("formats._guard", ()),
        in_c("formats._stage_file", (), "-ffp-contract=off"),
    ],
)
