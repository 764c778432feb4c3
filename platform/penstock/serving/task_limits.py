"""What one async request may hold, and how long it lives."""

MAX_TASK_ROWS = 50_000
MAX_TASK_BODY_BYTES = 32 << 20
ROWS_PER_CHUNK = 256
"""So many are scored at a time: predict requests that come meanwhile wait for no more than that."""
LIFE_S = 24 * 3600.0
"""Until then a task is done or has failed, where the caller does not ask for sooner."""
RESULT_LIFE_S = 24 * 3600.0
"""So long behind its end a task is known and its result kept."""
MAX_WAITING = 1_000
MAX_KEPT = 100_000
MAX_BYTES = 4 << 30
