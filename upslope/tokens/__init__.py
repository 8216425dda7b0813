"""Text to token ids and back, token shards, and the stream that turns shards and a mixture into samples."""
