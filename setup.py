"""The one part of the build that pyproject.toml cannot say without a warning: what is in C."""

from setuptools import Extension, setup


def in_c(name: str, header: str, *options: str) -> Extension:
    """``aprtui.engine.NAME``; without a C compiler torch computes the same."""
    return Extension(
        f"aprtui.engine.{name}",
        [f"aprtui/engine/{name}.c"],
        depends=[f"aprtui/engine/{header}"],
        extra_compile_args=["-O3", *options],
        optional=True,
    )


setup(
    ext_modules=[
        in_c("_native", "_native_decoders.h", "-ffp-contract=off"),
        in_c("_row_sums", "_row_sums_kernel.h"),
    ]
)
