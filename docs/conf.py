"""The documentation as a site: pip install -e '.[docs]' && sphinx-build docs site."""

import re
from pathlib import Path

project = "igmask"
author = copyright = "The igmask authors"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "igmask"
exclude_patterns = ["captions"]
default_role = "code"
nb_execution_mode = "off"  # the tests run the tour
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
suppress_warnings = ["misc.highlighting_failure"]  # languages that Pygments does not know


def files_of_the_project(app, name, source):
    """Links to files beside docs/: the site brings these with it."""
    pattern = r"\[([^\]]+)\]\((\.\./[^)#]+)\)"

    def download(link):
        text, path = link.groups()
        text = text.replace("`", "")
        is_file = (Path(app.srcdir) / path).is_file()
        return f"{{download}}`{text} <{path}>`" if is_file else text

    source[0] = re.sub(pattern, download, source[0])


def fields(app, what, name, obj, options, lines):
    """Make our docstrings' `name: text`, `returns` and `raises` the fields that Sphinx has."""
    found = []
    for line in lines:
        if described := re.match(r"([a-z_]\w*(?:, [a-z_]\w*)*):\s+(\S.*)", line):
            start = f":param {described[1]}:" if "," not in described[1] else f":{described[1]}:"
            found.append(f"{start} {described[2]}")
        elif said := re.match(r"(returns|raises)\s+(\S.*)", line):
            found.append(f":{said[1]}: {said[2]}")
        else:
            found.append(line)
    for i, line in enumerate(found[:-2]):
        if line.endswith(":") and not found[i + 1] and found[i + 2].startswith("    "):
            found[i] += ":"  # what is indented is code
    # Fields are a block of their own.
    for i in reversed(range(1, len(found))):
        is_field = found[i].startswith(":") and not found[i - 1].startswith((":", " "))
        if is_field and found[i - 1]:
            found.insert(i, "")
    lines[:] = [re.sub(r"(?<![*\w`])\*(?=\w)|\|", r"\\\g<0>", line) for line in found]


def setup(app):
    """Sphinx asks for this."""
    app.connect("source-read", files_of_the_project)
    app.connect("autodoc-process-docstring", fields)
