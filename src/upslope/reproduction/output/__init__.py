"""The contents of an artefact, and their formats; artefacts and `write` call it."""
