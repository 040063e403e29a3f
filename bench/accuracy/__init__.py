"""Are a profile's answers right? Log-probabilities, greedy text and sinks against a reference."""
