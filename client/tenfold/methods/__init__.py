"""One module a method: the types of its results and a function for each of its operations.

A function describes the call once; `blocking` and `awaited` make it a method of `Client` and of `AsyncClient`, and the
command line reads its signature and docstring. So another method is one small module here, like `ifadit.py`, and a line
in each of the two classes below.
"""

from __future__ import annotations

from tenfold._surface import AsyncCalls, Calls
from tenfold.methods.dit_sr import AsyncDitSr, DitSr
from tenfold.methods.dlsr import AsyncDlsr, Dlsr
from tenfold.methods.ifadit import AsyncIfadit, Ifadit
from tenfold.methods.tad_sr import AsyncTadSr, TadSr


class Served(Calls):
    """The methods that have functions of their own here. Any other is reached through `call`."""

    @property
    def dit_sr(self) -> DitSr:
        """Four-fold super-resolution by a diffusion transformer."""
        return DitSr(self._driver)

    @property
    def dlsr(self) -> Dlsr:
        """Detectors of pictures that are not like those they know."""
        return Dlsr(self._driver)

    @property
    def ifadit(self) -> Ifadit:
        """Reversible face anonymization."""
        return Ifadit(self._driver)

    @property
    def tad_sr(self) -> TadSr:
        """Four-fold super-resolution in one step."""
        return TadSr(self._driver)


class AsyncServed(AsyncCalls):
    """The methods that have functions of their own here. Any other is reached through `call`."""

    @property
    def dit_sr(self) -> AsyncDitSr:
        """Four-fold super-resolution by a diffusion transformer."""
        return AsyncDitSr(self._driver)

    @property
    def dlsr(self) -> AsyncDlsr:
        """Detectors of pictures that are not like those they know."""
        return AsyncDlsr(self._driver)

    @property
    def ifadit(self) -> AsyncIfadit:
        """Reversible face anonymization."""
        return AsyncIfadit(self._driver)

    @property
    def tad_sr(self) -> AsyncTadSr:
        """Four-fold super-resolution in one step."""
        return AsyncTadSr(self._driver)
