"""The command line: one verb a file. The only place that prints."""
