from payments import TRANSACTIONS, USE_CASE, commit_payments, make_payments
from penstock.data import tables
from penstock.features.build import build
from penstock.features.lineage import trace


def test_a_feature_table_leads_back_to_the_version_that_it_was_made_from(prepared):
    commit_payments(prepared, make_payments(700)[600:])
    build(prepared, USE_CASE)
    found = {
        (each.table, each.version): each
        for each in trace(prepared, {"card_fraud.customer_windows": 0, TRANSACTIONS: 1})
    }
    assert found["card_fraud.customer_windows", 0].made_from == f"{TRANSACTIONS} version 0"
    assert found[TRANSACTIONS, 0].num_rows == 600
    assert found[TRANSACTIONS, 1].num_rows == 700


def test_an_ingested_table_names_its_sources_up_to_that_version(prepared):
    for name in ("may.parquet", "june.parquet"):
        report = f'{{"sources": [{{"source": "{name}", "status": "ingested"}}]}}'
        rows = make_payments(1)[:0]
        tables.commit(
            prepared,
            TRANSACTIONS,
            rows,
            mode="append",
            partition_by="month",
            event_time="TX_DATETIME",
            metadata={"ingest": report},
        )
    (found,) = trace(prepared, {TRANSACTIONS: 2})
    assert (found.sources, found.num_sources) == (("june.parquet", "may.parquet"), 2)
    (earlier,) = trace(prepared, {TRANSACTIONS: 1})
    assert earlier.sources == ("may.parquet",)
