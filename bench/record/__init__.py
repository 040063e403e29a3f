"""What results of every kind have in common: envelope, schema, run folder, steps, noise."""
