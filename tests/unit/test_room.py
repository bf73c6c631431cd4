"""Rows that wait on the disk until their stages are whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from aprtui.engine.room import Room
from aprtui.errors import EngineError


def test_arrays_keep_what_they_hold_while_the_file_grows(tmp_path: Path) -> None:
    room = Room(tmp_path)
    shapes = [(3, 4), (), (0, 7), (600, 1000), (2, 2, 2), (1 << 20,), (5,)]
    taken = [room.take(shape) for shape in shapes]
    assert all(not array.any() for array in taken)
    for number, array in enumerate(taken):
        array[...] = number
    assert list(tmp_path.iterdir()) == []  # it has no name
    room.close()
    for number, (array, shape) in enumerate(zip(taken, shapes, strict=True)):
        assert array.shape == shape and array.dtype == np.float32 and (array == number).all()


def test_a_full_disk_is_an_error_when_room_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*about: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(EngineError, match="no room for the rows of all passes: No space left"):
        Room(tmp_path).reserve(10)
    assert list(tmp_path.iterdir()) == []
