"""The evidence of docs/results-mechanism.md and docs/results-frozen.md: sweeps, their summaries, tables and plots."""
