"""Speed of a profile, cold and warm: llama-benchy, comparisons and plots."""
