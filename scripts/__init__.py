"""Programs that ``make`` runs: ``python -m scripts.NAME``."""
