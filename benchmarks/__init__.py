"""Measurements against other libraries. Not tests: results are committed as JSON with machine, versions and commit."""
