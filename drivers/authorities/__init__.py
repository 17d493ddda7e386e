"""Certificate authorities: the ports, the providers, and X.509 itself."""
