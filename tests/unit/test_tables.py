import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.datasets import tables
from refine.datasets.tables import Layout, nearest, read_batches

texts = st.text(st.sampled_from('ab ,"\né'), max_size=6).filter(lambda text: text.strip() != "")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=12), st.integers(1, 60))
def test_chunks_do_not_change_what_is_read(tmp_path_factory, rows, chunk):
    """Against the csv module: quotes, separators and line ends inside of fields included."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("x", "y", "z"), *rows])
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "CHUNK_BYTES", chunk)
        batches = list(read_batches(path, Layout(",", quoted=True)))
    read = [row for batch in batches for row in batch.frame.rows()]
    assert read == rows
    places = [batch.locate(row) for batch in batches for row in range(len(batch.frame))]
    assert places == [f"{path}, row {row}" for row in range(2, len(rows) + 2)]


def test_the_nearest_name_comes_first():
    assert nearest("rating", ["user", "Ratings", "item"]).startswith("'Ratings', ")
