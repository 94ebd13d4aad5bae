"""A converted model does what the original does, in every world we can think of.

``case.py`` says what a case is and ``cases_*.py`` hold them: small hostile modules, each with what is expected of
its conversion. ``worlds.py`` holds the situations, ``sameness.py`` what it means to do the same, ``compare.py`` runs
one case in one world. The forwards stand in plain files: pytest rewrites the assertions of test files, so that their
text would not be what runs.
"""
