"""Fuzz targets of the readers, each a program: ``python -m fuzz.NAME``."""
