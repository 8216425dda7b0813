"""Number formats of training and inference."""
