"""Numbers taken from finished runs, computed once and stored beside them; artefacts call it."""
