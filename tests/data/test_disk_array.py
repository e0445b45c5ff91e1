"""The growing array on disk gives back what was put in, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunesmith.data.disk_array import DiskArray
from tunesmith.errors import DataError


def test_what_was_appended_is_read_in_order_and_no_file_stays(tmp_path: Path):
    with DiskArray(np.uint32, tmp_path) as array:
        assert array.read().tolist() == []
        array.append(np.arange(3, dtype=np.uint32))
        array.append(np.array([[7, 8], [9, 10]], np.uint32).T)  # not in C order
        assert array.read().tolist() == [0, 1, 2, 7, 9, 8, 10]
        array.append(np.empty(0, np.uint32))
        assert len(array) == 7
        left = array.read()
    assert left[3] == 7  # what was read outlives the file
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        DiskArray(np.uint32, tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")
