"""One file per noun: its columns as data, its verbs as actions.

Owns: nothing; the screens are listed in ``tui.nav.SCREENS``.
Never: fetches data in the background; that is ``tui.feed``.
Read next: ``tui.frame`` (what every screen has in common).
"""
