"""The registrar."""
