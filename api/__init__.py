"""The HTTP API: starts and steers operations, reads the inventory; never does the work itself."""
