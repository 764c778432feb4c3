"""One file per noun of the `penstock` command."""
