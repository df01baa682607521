"""What every audit event is.

Owns: the base class.
Never: lists events; that is the package's.
Read next: the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events: ``KIND`` is stable text; ``SEALED`` fields are under the tenant's key.

    ``HIDDEN`` members are never shown: paths of names, into the event's own fields.
    """

    KIND: ClassVar[str] = ""
    SEALED: ClassVar[bool] = False
    HIDDEN: ClassVar[tuple[tuple[str, ...], ...]] = ()
