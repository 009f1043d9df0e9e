"""Fuzzing: what reads bytes of strangers is given bytes that nobody thought of."""
