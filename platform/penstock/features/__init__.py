"""Table -> feature table -> training set; entity -> online row."""
