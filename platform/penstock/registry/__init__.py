"""Run -> model version."""
