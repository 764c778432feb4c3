"""Penstock: from raw events to a served, watched, renewed model, on Ray."""
