"""Language models out of folders, and what the words that they write rest on: of one prompt a page, of many tables.

Read on in this order: languages, answers, pages, prompts, files, runs, merging, report.
"""

from lrpfunc.pictures.texts import files, merging, report
