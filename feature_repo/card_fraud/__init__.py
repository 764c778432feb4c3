"""The use case card_fraud: which card payments are fraud."""
