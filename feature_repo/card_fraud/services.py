"""The features that one model version is trained on and served with."""

from feast import FeatureService

from card_fraud.views import customer_view, payment_view, terminal_view

card_fraud_v1 = FeatureService(
    name="card_fraud_v1",
    features=[payment_view, customer_view, terminal_view],
    description="The 15 features of the published protocol.",
)
