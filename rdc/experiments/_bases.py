"""Base classifiers of the certificates: the words of their tables, and the models behind them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rdc.runs.cell import Row

SIGMAS = (0.25, 0.5, 1.0)
#: Draws of the certificates: those that choose the class, and the probability of error.
DRAWS = {"n0": 100, "alpha": 0.001}


class Base(NamedTuple):
    """A base classifier: what the tables call it, its model, options, and smoothing noise."""

    name: str
    model: str
    options: Mapping[str, Any]
    sigma: float

    def row(self, task: str, arguments: Mapping[str, Any], n: int, block: int, data: str = "fashion-mini", **about: Any) -> Row:
        """Return a row of a task."""
        given = {"sigma": self.sigma, **arguments}
        return Row(self.model, self.options, None, given, data, n, block=block, task=task, about={**self.words(), **about})

    def words(self) -> dict[str, Any]:
        """Return what the tables say of it."""
        own = self.options
        denoiser = own.get("denoiser", "-").replace("-head", " head") if "denoiser" in own else None
        form = own.get("form", own.get("variant", "quadrature" if self.model == "cascade" else None))
        return {
            "base": self.name, "sigma": self.sigma, "denoiser": denoiser, "form": "fixed" if self.model == "race" else form,
            "levels": 124 if self.model == "race" else own.get("levels"), "first": own.get("first"), "gap": own.get("gap"),
            "noise": self.noise(), "rounds": self.rounds(), "coupling": own.get("coupling", "shared"), "seed": own.get("seed"),
        }  # fmt: skip

    def noise(self) -> str:
        """Return how the inner noise is drawn, and what else tells two of a name apart, in words."""
        own = self.options
        mirror = own.get("antithetic", self.model == "cascade")
        words = [own.get("coupling", "shared"), "mirror images" if mirror else "", own.get("noise", "")]
        words += [f"gap {own['gap']:g}" if "gap" in own else "", self.rounds() or "", "another seed" if "seed" in own else ""]
        return ", ".join(filter(None, words))

    def rounds(self) -> str | None:
        """Return the rounds of a race: levels of the heads, levels in all of the single head, and gaps between."""
        if self.model != "race":
            return None
        return f"levels 4 | 4 | 10 | 20 | 40, gaps {' '.join(f'{g:g}' for g in self.options['gaps'])}"

    def named(self, **more: Any) -> dict[str, Any]:
        """Return it as an argument of a row."""
        return {"model": self.model, "options": dict(self.options), **more}


def epndc(
    sigma: float, levels: int, denoiser: str = "heads", form: str = "quadrature", antithetic: bool = True, **more: Any
) -> Base:
    """Return an exact-posterior classifier."""
    own = {"sigma": sigma, "levels": levels, "denoiser": denoiser, "form": form, "antithetic": antithetic, **more}
    return Base("EPNDC", "epndc", own, sigma)


def apndc(sigma: float, levels: int, denoiser: str = "heads", variant: str = "ensemble", **more: Any) -> Base:
    """Return an approximated-posterior classifier."""
    return Base("APNDC", "apndc", {"sigma": sigma, "levels": levels, "denoiser": denoiser, "variant": variant, **more}, sigma)


def cascade(sigma: float, levels: int = 3, gap: float = 1.0, first: int | None = None) -> Base:
    """Return heads first, then the single-head network for the classes within ``gap`` of the best, three at most."""
    more = {} if first is None else {"first": first}
    return Base("Cascade", "cascade", {"sigma": sigma, "levels": levels, "gap": gap, **more}, sigma)


def race(gaps: tuple[float, ...], keep: tuple[int, ...]) -> Base:
    """Return levels of the reference, with its noise."""
    return Base("Race", "race", {"gaps": list(gaps), "keep": list(keep)}, 0.25)


def reference(sigma: float = 0.25, denoiser: str = "single-head", **more: Any) -> Base:
    """Return EPNDC with 124 levels, one evaluation for each class, and the chain of its bound."""
    return epndc(sigma, 124, denoiser, "fixed", False, **more)


def published(sigma: float = 0.25, **more: Any) -> Base:
    """Return APNDC as published, with 1 + 124 K evaluations."""
    return apndc(sigma, 124, "single-head", **more)


def carlini(sigma: float) -> Base:
    """Return one step of the denoiser, then a network for clean images."""
    return Base("Carlini", "carlini", {"sigma": sigma, "denoiser": "single-head"}, sigma)


def cohen(sigma: float) -> Base:
    """Return a network trained with the noise."""
    return Base("Cohen", "cohen", {"sigma": sigma}, sigma)


def clipped(sigma: float) -> Base:
    """Return the clean diffusion classifier on the clipped noisy image."""
    return Base("DC, clipped", "dc", {"levels": 8, "denoiser": "heads"}, sigma)


#: How many draws of each stratum a slow classifier is asked about.
STRATA = [16, 16, 8]
#: Few rounds and wide ones; the second was chosen on the images of certificates-levels.
RACES = (
    race((2.5, 1.0, 0.8, 0.5), (2, 2, 2, 2)),
    race((3.0, 1.0, 0.8, 0.5), (4, 3, 2, 2)),
    race((3.0, 2.0, 1.6, 1.0), (4, 3, 2, 2)),
)
CHOSEN = RACES[1]
