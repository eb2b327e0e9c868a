"""The report of a benchmark: tables, figures and where the numbers come from, in four formats."""
