"""What is asked of Consul for a person: `doctor`, `modes` and `probe`."""
