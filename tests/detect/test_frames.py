import numpy as np
import pandas as pd
import pytest

from stabkit.detect.frames import rows_frame

COLUMNS = {"onset": "int64", "height": "float64", "last": "bool"}


@pytest.mark.parametrize(
    "rows", [[], [(3, 1.5, True)], [(np.int64(3), 2, False), (4, np.float32(0.1), np.bool_(True))]]
)
def test_the_table_is_that_of_pandas_cast(rows: list[tuple[object, ...]]) -> None:
    expected = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    pd.testing.assert_frame_equal(rows_frame(rows, COLUMNS), expected, check_column_type=False)


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rows_frame([(1, 2.0)], COLUMNS)
