"""``nnunet-ext demo``: the whole way from images to a table of Dice scores, in minutes.

``synthetic`` makes a small task, ``pipeline`` runs nnU-Net's own commands in order and
resumes, ``readers`` follows what they print, ``report`` shows the result.
"""
