"""What `penstock models export` writes beside a graph; nothing here imports Penstock."""
