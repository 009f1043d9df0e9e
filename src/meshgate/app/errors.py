"""The failures a user can do something about: one clear line, an exit code, never a traceback."""


class CommandError(Exception):
    """Something went wrong at run time. Its text is the line the user sees; it must not hold a secret."""

    exit_code = 1


class ConfigError(CommandError):
    """The command line, the environment or the `.env` file asks for something that is not possible, a line each."""

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
