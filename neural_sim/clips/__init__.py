"""Recorded drives: the clip format and the readers that make clips from datasets."""
