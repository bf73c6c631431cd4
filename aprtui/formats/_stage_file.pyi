from os import PathLike

from typing_extensions import Buffer

def measure(address: int, n: int, /) -> tuple[float, float, float, float, int, int, int]: ...
def write(
    folder: int,
    part: str | PathLike[str],
    path: str | PathLike[str],
    header: Buffer,
    values: Buffer,
    /,
) -> bool: ...
