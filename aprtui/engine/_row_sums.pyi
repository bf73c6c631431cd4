def measure(
    x: int,
    y: int,
    rows: int,
    columns: int,
    sums: int,
    places: int,
    n_places: int,
    sample_x: int,
    sample_y: int,
    /,
) -> bool: ...
