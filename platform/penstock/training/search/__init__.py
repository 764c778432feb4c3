"""Searching parameters and families: trials over folds of time, each result written at once."""
