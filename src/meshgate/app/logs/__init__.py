"""What goes to log files: the log itself, the access log, and lines about refusals and tables."""
