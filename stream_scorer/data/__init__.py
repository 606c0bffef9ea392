"""One's own data: from a CSV file to a pipeline spec, to files that training and replay take, to the topics."""
