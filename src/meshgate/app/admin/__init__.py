"""What the admin address says of the running gateway."""
