"""How much of whole models has a rule, as a table: `python -m tests.coverage [library or model or pattern ...]`."""
