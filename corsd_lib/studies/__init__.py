"""A study: several methods, each with several seeds, trained, compared and tuned.

study.py      `Study`, the comparison, as read from study.json
records.py    the record of a finished training
compare.py    `run_study`: train what a study lacks (`corsd compare`)
workers.py    the processes that train, and their environments
cluster.py    the trainings as jobs of a cluster; cluster_job.py runs in such a job
progress.py   the live table of `corsd compare`
intervals.py  means over seeds with their intervals
summary.py    the summary of all records
tables.py     summary.json and the tables; unseen_tables.py: tables for classes that were held out
search.py     the search of a variant: its entry in the field `tuning` of the study
tuner.py      `tune`: one process asks Optuna for trials and writes journal and record (`corsd tune`)
trials.py     a trial, trained in a separate process
"""
