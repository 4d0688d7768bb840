"""``nnunet-ext demo``: the whole way from images to a table of Dice scores, in minutes.

``synthetic`` makes a small task, ``decathlon`` checks or downloads a real one,
``commands`` runs nnU-Net's own commands, ``pipeline`` puts them in order and resumes,
``report`` shows the result.
"""
