"""Sphinx configuration: ``make docs`` builds docs/_build/html and treats every warning as an error."""

from importlib.metadata import version as installed_version

project = "implicitgrad"
author = "The implicitgrad developers"
copyright = "The implicitgrad developers"
release = installed_version("implicitgrad")
version = release

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3  # a heading can be linked to, as on the code host

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state shapes and edge values, which the annotations cannot
numpydoc_show_class_members = False  # a frozen dataclass documents its fields under Parameters

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"implicitgrad {release}"
