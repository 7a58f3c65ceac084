"""Makes ``book/results``: runs larger than a page's own, which the chapters show beside theirs.

    python -m experiments [classes] [interlayer] [extractors] [controls] [readings] [shared]
                          [graphs] [paths] [sampling] [scale]

Each part writes one JSON file, anew after every step; a run that was killed goes on where it was.
``scale`` measures what everything costs, so it starts from nothing, and only where it is named:
the book shows it for the profile ``paper``, the others for ``workstation``.
"""
