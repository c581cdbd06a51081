"""What a person at a prompt sees: a line for each object, tables in notebooks, progress bars.

Files:
    lines: what an object is, in a line
    tables: results as tables of a notebook
    bars: how far something is that takes long
"""
