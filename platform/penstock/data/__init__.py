"""Raw source -> table."""
