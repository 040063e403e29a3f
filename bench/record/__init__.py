"""What results of every kind share: envelope, schema, run folder, steps, noise."""
