"""Proofs: one command for every promise and figure the project states. `make prove P=<slug>`, see docs/proofs.md.

A module a proof, each with `run(context) -> Result`. Its last line of output is one JSON object; `BREAK=1` sabotages
the property and must make it fail; a count below its stated minimum fails too.
"""
