"""Supervised training on shards with DeepSpeed."""
