"""`python -m meshgate` is the command `meshgate`."""

from meshgate.app.cli.main import main

if __name__ == "__main__":
    main()
