"""The catalogue: what a tenant has registered already, found by what people remember of it.

Owns: the index of every version in memory, the search over it, and what is much like what.
Never: writes anything, and so no name or text to a disk; decides who may see what.
Read next: ``columns`` (what a schema takes), ``index`` (what is kept per version), ``search``,
``alike``; ``api.native.catalogue`` (who asks).
"""

from __future__ import annotations

from appliance.catalogue.alike import found_alike
from appliance.catalogue.index import Card, Catalogue
from appliance.catalogue.search import Hit, Page, Question, Reason, search

__all__ = ["Card", "Catalogue", "Hit", "Page", "Question", "Reason", "found_alike", "search"]
