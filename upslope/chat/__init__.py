"""Conversations: messages, and renderers that turn them into tokens with provenance."""
