"""Scripts that run on hosts."""
