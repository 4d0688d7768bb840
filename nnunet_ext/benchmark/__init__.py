"""Many trainers on one data set: run, collect, compare, report."""
