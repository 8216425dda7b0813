"""Chat models that recipes can name: each file holds one `Speaker`, found by the name of the file."""
