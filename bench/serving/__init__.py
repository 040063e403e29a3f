"""How fast is a profile, cold and warm? llama-benchy, comparisons and plots."""
