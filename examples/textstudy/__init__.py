"""What the examples with language models share: a study in one process, what it is compared with, a page.

study.py    parties with vaults, a plan from a template, the study itself
compare.py  the same model trained in one place and by each site alone; TF-IDF with logistic regression
page.py     the figures as one HTML page
command.py  the options of an example's run.py, and its order of steps
"""
