"""Wiring: settings, clients, telemetry, and the processes that Hostler consists of."""
