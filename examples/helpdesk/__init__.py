"""The example task: customer messages to JSON, see README.md here."""
