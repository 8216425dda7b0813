"""Generation: engines (token ids in and out) and chat models (messages in, message out)."""
