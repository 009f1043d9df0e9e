"""Settings: one table, from which flags, environment, `.env` file, example file and page are made."""
