"""The `hostler` command: runs Hostler's processes, and is a client of its HTTP API."""
