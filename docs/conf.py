from importlib.metadata import version as installed_version

project = "pyro_ebm"
author = "The pyro_ebm developers"
copyright = author
version = release = installed_version("pyro_ebm")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3  # links to sections, spelled as GitHub does

# What a namespace's `__all__` names is its interface, wherever it is defined.
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # the ones from torch and Pyro refer to their own pages
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"pyro_ebm {release}"
