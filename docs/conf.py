"""The documentation's site: `sphinx-build -W -n -b html docs <folder>`; a warning is an error there."""

from meshgate import __version__

project = "meshgate"
copyright = "the meshgate founders"  # noqa: A001 - Sphinx' name
release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"meshgate {release}"
html_theme_options = {"source_view_link": ""}
html_show_sourcelink = False
html_copy_source = False
