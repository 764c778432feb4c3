"""The window features of the published protocol, named as their authors named them."""

from datetime import timedelta

from penstock.features.declarations import FeatureTable
from penstock.features.windows import Aggregation, Windows

WIDTHS = {f"{days}DAY": timedelta(days=days) for days in (1, 7, 30)}
# A fraud becomes known seven days after the payment, so a terminal's share of fraud may only look
# at payments that are at least that old.
LABEL_DELAY = timedelta(days=7)

customer_windows = FeatureTable(
    name="card_fraud.customer_windows",
    source="card_fraud.transactions",
    windows=Windows(
        entity=("CUSTOMER_ID",),
        event_time="TX_DATETIME",
        widths=WIDTHS,
        aggregations=(
            Aggregation(kind="count", column=None, name="CUSTOMER_ID_NB_TX_{window}_WINDOW"),
            Aggregation(
                kind="mean", column="TX_AMOUNT", name="CUSTOMER_ID_AVG_AMOUNT_{window}_WINDOW"
            ),
        ),
    ),
)

terminal_windows = FeatureTable(
    name="card_fraud.terminal_windows",
    source="card_fraud.transactions",
    windows=Windows(
        entity=("TERMINAL_ID",),
        event_time="TX_DATETIME",
        widths=WIDTHS,
        delay=LABEL_DELAY,
        aggregations=(
            Aggregation(kind="count", column=None, name="TERMINAL_ID_NB_TX_{window}_WINDOW"),
            Aggregation(kind="share", column="TX_FRAUD", name="TERMINAL_ID_RISK_{window}_WINDOW"),
        ),
    ),
)
