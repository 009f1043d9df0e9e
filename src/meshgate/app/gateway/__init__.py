"""The running gateway: its parts wired together, started, followed and drained."""
