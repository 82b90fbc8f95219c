"""Loading landed objects and site records into a SQL warehouse: staging, verifying, merging, counting."""
