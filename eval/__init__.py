"""Closed-loop metrics: scorers, aggregation, reports and videos."""
