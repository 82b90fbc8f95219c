"""Landed objects and site records to a SQL warehouse: staged, merged, counted."""
