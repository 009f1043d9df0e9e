"""Pictures of the dashboard and of `meshgate top` for the documentation, of a real gateway under real traffic."""
