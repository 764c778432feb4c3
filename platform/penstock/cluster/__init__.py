"""The Ray that work runs on: ours on this machine, or another."""
