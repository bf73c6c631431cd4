"""Other tools' dumps: containers that can call nothing, maps as data, stages put together."""
