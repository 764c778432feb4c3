"""Payments as they happen: pushed over HTTP, or from Kafka where the settings name one."""

from datetime import timedelta

from penstock.data.events import KafkaTopic, Push
from penstock.features.stream_declarations import Stream

payments = Stream(
    table="card_fraud.transactions",
    sources=(Push(), KafkaTopic(topic="card_fraud.transactions")),
    resolution=timedelta(minutes=1),
)
