"""Recordings of a real Consul's answers. See `scripts/record-consul`."""
