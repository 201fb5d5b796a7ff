"""The evidence: what is trained for docs/results.md, and the tables and pictures made from it."""
