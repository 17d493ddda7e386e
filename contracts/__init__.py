"""What crosses a boundary: frozen pydantic models, state enums with their transitions, error types.

Imports nothing else of Hostler's, so that every layer may import it.
"""
