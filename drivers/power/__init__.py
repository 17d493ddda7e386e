"""Drivers of BMCs. Each is an entry point (contracts.power.POWER_DRIVER_GROUP)."""
