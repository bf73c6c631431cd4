"""Model files, stage files and trace directories: bytes in, checked values out."""
