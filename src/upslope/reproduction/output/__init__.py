"""What an artefact consists of, and how it is written; artefacts and `write` call it."""
