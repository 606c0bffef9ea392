"""The command line, one module per command: results on stdout, progress and logs on stderr, no logic."""
