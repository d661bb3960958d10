"""Pages for a browser, whatever they show: where they listen, which requests they refuse, which headers they carry.

``address`` needs nothing, ``guard`` and ``scripts`` need Starlette, which comes with the extras that have pages.
"""
