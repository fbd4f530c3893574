"""Every method by name. A method is built from a frozen model and a start, trained, and frozen into a prompt."""
