"""Step A of Mind the Gap: a translator is trained alone, and labelled images take target looks.

No label enters, so that one translator serves all folds.
"""
