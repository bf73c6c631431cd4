"""The one part of the build that pyproject.toml cannot say without a warning: what is in C."""

from setuptools import Extension, setup


def in_c(name: str, *options: str, header: str | None = None) -> Extension:
    """``aprtui.NAME``; without a C compiler Python does the same by another way."""
    folder = f"aprtui/{name.replace('.', '/').rpartition('/')[0]}"
    return Extension(
        f"aprtui.{name}",
        [f"aprtui/{name.replace('.', '/')}.c"],
        depends=[f"{folder}/{header}"] if header else [],
        extra_compile_args=["-O3", *options],
        optional=True,
    )


setup(
    ext_modules=[
        in_c("engine._native", "-ffp-contract=off", header="_native_decoders.h"),
        in_c("engine._row_sums", header="_row_sums_kernel.h"),
        in_c("formats._guard"),
    ]
)
