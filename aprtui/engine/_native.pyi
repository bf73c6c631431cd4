TYPES: tuple[str, ...]

def decode(
    type_name: str, blocks: int, blocks_bytes: int, out: int, out_values: int, /
) -> None: ...
