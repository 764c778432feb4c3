import polars as pl
import pyarrow as pa

from feast_repo import open_store
from penstock.features.retrieval_job import PenstockRetrievalJob, to_plain_arrow


def test_a_result_is_one_chunk_of_types_that_feast_knows():
    frame = pl.concat([pl.DataFrame({"a": ["x"], "b": [["y"]]})] * 3, rechunk=False)
    table = to_plain_arrow(frame)
    assert table.schema == pa.schema({"a": pa.string(), "b": pa.list_(pa.string())})
    assert len(table.to_batches()) == 1


def test_a_job_reads_when_it_is_asked_and_not_before(tmp_path):
    reads = []

    def read() -> pa.Table:
        reads.append(1)
        return pa.table({"a": [1]})

    job = PenstockRetrievalJob(read, config=open_store(tmp_path).config)
    assert reads == []
    assert job.to_df()["a"].tolist() == [1]
    assert reads == [1]
    assert not job.supports_remote_storage_export()
    assert job.metadata is None
