"""The running product: settings, wiring, supervision, commands."""
