"""The running product: settings, wiring, commands."""
