"""What can be looked up for a payment: by its customer, by its terminal, and from itself."""

from datetime import timedelta
from inspect import getsource

from feast import Entity, FeatureView, Field, OnDemandFeatureView, RequestSource
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Float64, Int64, UnixTimestamp

from card_fraud.entities import customer, terminal
from card_fraud.feature_tables import LABEL_DELAY, WIDTHS, customer_windows, terminal_windows
from card_fraud.transforms import payment_features
from penstock.features.declarations import FeatureTable
from penstock.features.delta_source import DeltaSource

# A row says nothing more once its widest window, moved by its delay, has gone by: no event that it
# counted is inside the window any longer. A training row always meets the row of its own event.
WIDEST = max(WIDTHS.values())


def window_view(table: FeatureTable, entity: Entity, name: str, ttl: timedelta) -> FeatureView:
    """A view of every feature of the table; counts are whole numbers."""
    (join_key,) = table.windows.entity
    features = [
        Field(name=feature, dtype=Int64 if "_NB_TX_" in feature else Float64)
        for feature in table.windows.feature_names()
    ]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[Field(name=join_key, dtype=Int64), *features],
        source=DeltaSource(table=table.name, timestamp_field=table.windows.event_time),
    )


customer_view = window_view(customer_windows, customer, "card_fraud_customer", WIDEST)
terminal_view = window_view(terminal_windows, terminal, "card_fraud_terminal", WIDEST + LABEL_DELAY)

payment = RequestSource(
    name="card_fraud_payment",
    timestamp_field="TX_DATETIME",
    schema=[
        Field(name="TX_DATETIME", dtype=UnixTimestamp),
        Field(name="TX_AMOUNT", dtype=Float64),
    ],
)
payment_view = OnDemandFeatureView(
    name="card_fraud_payment_features",
    mode="python",
    sources=[payment],
    schema=[
        Field(name="TX_AMOUNT", dtype=Float64),
        Field(name="TX_DURING_WEEKEND", dtype=Int64),
        Field(name="TX_DURING_NIGHT", dtype=Int64),
    ],
    feature_transformation=PythonTransformation(
        udf=payment_features, udf_string=getsource(payment_features)
    ),
)
