"""Measurements of the operator, the readers and the warehouse, each a program: ``python -m benchmarks.NAME``."""
