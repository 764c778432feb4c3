"""Model version + online row -> prediction."""
