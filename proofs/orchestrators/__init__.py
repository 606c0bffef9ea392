"""Programs that the proof `workflows` runs in the environments of the orchestrators."""
