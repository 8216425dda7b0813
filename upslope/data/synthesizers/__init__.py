"""Ways of making documents and instructions from other texts, one file each."""
