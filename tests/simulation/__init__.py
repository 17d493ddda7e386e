"""A cluster in memory behind the drivers' protocols: all of Hostler runs on it but its drivers."""
