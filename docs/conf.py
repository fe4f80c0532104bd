"""Sphinx configuration: ``make docs`` builds docs/_build/html and treats every warning as an error."""

from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import version as installed_version
from inspect import isabstract, signature
from typing import Any

from numpydoc.xref import DEFAULT_LINKS
from sphinx.util import logging
from sphinx.util.inspect import stringify_signature
from sphinx.util.rst import escape

from implicitgrad import Status

project = "implicitgrad"
author = "The implicitgrad developers"
copyright = "The implicitgrad developers"
release = installed_version("implicitgrad")
version = release

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3  # a heading can be linked to, as on the code host

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state shapes and edge values, which the annotations cannot
autosummary_generate = False  # tables only; the entries stand on pages that are written by hand
add_module_names = False  # public names are those of the package, whose import stands above them
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88  # longer ones have a line for each argument
numpydoc_xref_param_type = True
numpydoc_xref_aliases = (
    {name: name for name in DEFAULT_LINKS}  # Python's own documentation would have to be fetched: no links into it
    | {
        name: f"{module}.{name}"
        for module in ("implicitgrad", "implicitgrad.torch", "implicitgrad.diagnose")
        for name in import_module(module).__all__
        if name[0].isupper()
    }
    | {
        "Attempt": "implicitgrad.solvers.solution.Attempt",
        "Diagnosis": "implicitgrad.Diagnosis",
        "OperatorCheck": "implicitgrad.operators.check.OperatorCheck",
    }
)
numpydoc_xref_ignore = "all"
numpydoc_show_class_members = False  # a frozen dataclass documents its fields under Parameters

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"implicitgrad {release}"


def name_settings(app: Any, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """Give a dataclass the signature of its fields, for autodoc takes ``__new__``, and an interface none."""
    if what != "class" or not (is_dataclass(obj) or isabstract(obj)):
        return None
    settings = stringify_signature(signature(obj), show_annotation=False, show_return_annotation=False)
    return "" if isabstract(obj) else settings, None


def list_statuses(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give ``Status`` an entry for each member, whose value is its sentence."""
    if obj is Status:
        for status in Status:
            lines += [f".. attribute:: {status.name}", "", f"   {escape(status.sentence)}", ""]


def warn_of_missing_names(app: Any, env: Any) -> None:
    """Say which public names have no entry in the reference; a warning ends ``make docs``."""
    entries = env.domains["py"].objects
    for module in ("implicitgrad", "implicitgrad.torch", "implicitgrad.scipy"):
        for name in import_module(module).__all__:
            if f"{module}.{name}" not in entries:
                logging.getLogger("conf").warning("%s.%s has no entry in docs/reference*.md", module, name)


def setup(app: Any) -> None:
    """Connect them."""
    app.connect("autodoc-process-signature", name_settings)
    app.connect("autodoc-process-docstring", list_statuses)
    app.connect("env-check-consistency", warn_of_missing_names)
