"""The one part of the build that pyproject.toml cannot say without a warning: the C decoders."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "aprtui.engine._native",
            ["aprtui/engine/_native.c"],
            depends=["aprtui/engine/_native_decoders.h"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,  # without a C compiler torch decodes, to the same bits
        )
    ]
)
