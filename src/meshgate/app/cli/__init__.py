"""The command line: flags, commands, and the client of the admin address."""
