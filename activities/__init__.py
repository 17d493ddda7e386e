"""Side effects: one external system, one file, one class with its drivers injected."""
