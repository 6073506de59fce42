"""The command ``rdc models``: which models there are, and what can be set."""

__all__ = ["models_command"]

from typing import Annotated

from tyro.conf import Positional, arg

from rdc.experiments import unknown


def models_command(
    name: Annotated[Positional[str | None], arg(help="A model, for its options.")] = None,
) -> None:
    """List the models, or the options of one with their defaults.

    For example:
      rdc models rdc
    """
    from rdc.denoise.checkpoints import shipped
    from rdc.models import entry, names, names_user_model

    if name is None:
        table([(each, entry(each).line) for each in names()])
        print(f"\nAlso a checkpoint ({', '.join(shipped())}), a .safetensors file, or module:function, a model of one's own.")
        return
    if names_user_model(name):
        raise ValueError(f"{name} is a model of one's own: it has no options here")
    try:
        found = entry(name)
    except ValueError:
        raise unknown("model", name, [*names(), *shipped()], "rdc models") from None
    print(f"{found.text}\n")
    table([(str(option), option.values) for option in found.options.values()] or [("It has no options.", "")])


def table(rows: list[tuple[str, str]]) -> None:
    """Print two columns."""
    wide = max((len(left) for left, _ in rows), default=0)
    for left, right in rows:
        print(f"{left:{wide}}  {right}".rstrip())
