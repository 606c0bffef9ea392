"""The command line: one module a command. Results on stdout, progress and logs on stderr, logic elsewhere."""
