"""An Iceberg table of all landed rows: loads, maintenance and the log of changes. Needs the extra ``iceberg``."""
