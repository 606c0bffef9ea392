"""The user's own data: from a CSV file to a pipeline spec, to files for training and replay, and to the topics."""
