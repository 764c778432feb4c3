"""Who a payment is about: the customer who pays and the terminal that takes the card."""

from feast import Entity, ValueType

customer = Entity(
    name="customer",
    join_keys=["CUSTOMER_ID"],
    value_type=ValueType.INT64,
    description="A card holder.",
)
terminal = Entity(
    name="terminal",
    join_keys=["TERMINAL_ID"],
    value_type=ValueType.INT64,
    description="A payment terminal.",
)
