"""`pipeline manifest`: a dataset is built, every file of it decoded once, and what is wrong with it said.

    manifests/<dataset>/
      contents.<modality>.arrows       row i: what was found in item i's file, and of which size and time it was
      contents.<modality>.unfinished   the same of a run that was killed; the next one goes on from there
      problems.jsonl                   every missing, unreadable, repeated or leaking item, a line each

A file is read again when its size or its time of change is another one.
"""
