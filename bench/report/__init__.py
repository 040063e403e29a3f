"""The report: Markdown and plots made from result files alone."""
