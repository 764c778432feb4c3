"""The Ray that work runs on: started here or found elsewhere, and the jobs sent to it."""
