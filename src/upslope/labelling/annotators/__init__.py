"""Tools in which people answer, beside the page: one file an implementation of `Annotator`.

`files` is a CSV file and a folder to sort; `label_studio` a server of Label Studio, which
`label_studio_server` installs and starts. All are held by one conformance suite.
"""

from __future__ import annotations

TOOLS = ("files", "label-studio")
"""Names of the tools, as `--tool` takes them."""
