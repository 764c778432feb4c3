"""Training set -> run."""
