"""What an explanation costs, against the plain gradient and other libraries: `python -m tests.benchmarks --help`.

Read on in this order: measure, contenders, attention, tables, report.
"""
