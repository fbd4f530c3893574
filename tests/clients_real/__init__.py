"""Other people's clients against a running server; `make test-clients` starts it and runs them."""
